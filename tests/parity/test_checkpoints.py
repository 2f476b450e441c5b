"""Checkpoints travel: lightning's into the engine, by `load_from_checkpoint` and `ckpt_path`, and the engine's back.

Of lightning 2.6.6 real files are written here; of 1.9, which does not install beside it, a file of its layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def net_of(framework: Any) -> Any:
    """Return a class of `framework`: momentum and a schedule, so that their states matter."""

    class Net(framework.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, width: int = 4, lr: float = 0.1, folder: Path = Path("x")) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(2)
            self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), self.hparams.lr)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Net


def fit(framework: Any, net: Any, folder: Path, epochs: int, ckpt_path: Any = None, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(4)
    rows = TensorDataset(torch.randn(24, 4, generator=generator), torch.randn(24, 1, generator=generator))
    trainer = framework.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(net, DataLoader(rows, batch_size=4), ckpt_path=ckpt_path, **options)
    return trainer


def equal(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a file that lightning wrote after two epochs, and the module after four."""
    folder, cls = tmp_path_factory.mktemp("lightning"), net_of(lightning)
    fit(lightning, cls(width=6), folder, 2).save_checkpoint(folder / "two.ckpt")
    whole = cls(width=6)
    fit(lightning, whole, folder, 4)
    return folder / "two.ckpt", whole


@pytest.fixture
def of_1_9(written: tuple[Path, Any], tmp_path: Path) -> Path:
    """Return that file in the layout of 1.9: other version, hyper-parameters in its own class, other progress."""
    content = torch.load(written[0], weights_only=False)
    content["pytorch-lightning_version"] = "1.9.5"
    content["hparams_name"] = "kwargs"
    content["callbacks"] = {"ModelCheckpoint{'monitor': None, 'mode': 'min'}": {"best_model_path": "x.ckpt"}}
    content["native_amp_scaling_state"] = None
    epoch_loop = {"_batches_that_stepped": 12}
    done = {"ready": 12, "started": 12, "processed": 12, "completed": 12}
    last = {"ready": 6, "started": 6, "processed": 6, "completed": 6}
    epochs = {"ready": 2, "started": 2, "processed": 2, "completed": 2}
    content["loops"] = {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": epoch_loop,
            "epoch_loop.batch_progress": {"total": done, "current": last, "is_last_batch": True},
            "epoch_loop.scheduler_progress": {"total": {"ready": 12, "completed": 12}, "current": {"ready": 6}},
            "epoch_loop.batch_loop.state_dict": {},
            "epoch_loop.batch_loop.optimizer_loop.state_dict": {},
            "epoch_progress": {"total": epochs, "current": dict(epochs)},
        }
    }
    torch.save(content, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def test_weights_and_hyper_parameters_of_lightning_are_loaded(written: tuple[Path, Any], of_1_9: Path) -> None:
    before = net_of(lightning).load_from_checkpoint(written[0], weights_only=False)
    for path in (written[0], of_1_9):
        net = net_of(engine).load_from_checkpoint(path)
        assert (net.hparams.width, net.hparams.lr, net.hparams.folder) == (6, 0.1, Path("x"))
        assert equal(net, before)


def test_training_goes_on_from_files_of_lightning(written: tuple[Path, Any], of_1_9: Path, tmp_path: Path) -> None:
    for path in (written[0], of_1_9):
        net = net_of(engine)(width=6)
        trainer = fit(engine, net, tmp_path, 4, ckpt_path=path)
        assert (trainer.global_step, trainer.current_epoch) == (24, 4)
        assert net.losses == written[1].losses[12:], path
        assert equal(net, written[1]), path


def test_lightning_loads_weights_and_hyper_parameters_of_ours(tmp_path: Path) -> None:
    net = net_of(engine)(width=6)
    fit(engine, net, tmp_path, 2).save_checkpoint(tmp_path / "ours.ckpt")
    loaded = net_of(lightning).load_from_checkpoint(tmp_path / "ours.ckpt")
    assert (loaded.hparams.width, loaded.hparams.lr) == (6, 0.1)
    assert equal(loaded, net)


def test_lightning_trains_on_from_ours(tmp_path: Path) -> None:
    whole, rest = net_of(engine)(width=6), net_of(lightning)(width=6)
    fit(engine, whole, tmp_path, 4)
    fit(engine, net_of(engine)(width=6), tmp_path, 2).save_checkpoint(tmp_path / "ours.ckpt")
    trainer = fit(lightning, rest, tmp_path, 4, ckpt_path=tmp_path / "ours.ckpt")
    assert trainer.current_epoch == 4
    assert rest.losses == whole.losses[12:]
    assert equal(rest, whole)
