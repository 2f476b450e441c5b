"""A run that is resumed continues to the same bits, from wherever the checkpoint was written (requirement 50).

Each job is run once with a checkpoint at every batch, validation and epoch end; then a fresh model is resumed from each
of them in a process whose generators stand elsewhere. Rows, losses, weights, metrics and logged values must be equal.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import Callback, LightningModule, Trainer, seed_everything
from engine.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.classification import BinaryPrecision, BinaryRecall
from toys import BoringModel, loader, quiet_trainer

ROWS = 23


class Augmented(Dataset[Any]):
    """Rows that draw from all three global generators whenever they are read."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        noise = torch.randn(4) * 0.1 + random.random() * 0.01 + float(np.random.rand()) * 0.01
        return noise + index / 10, torch.tensor([index / 5.0]), index


class Stream(IterableDataset[Any]):
    """The same rows without a length."""

    def __iter__(self) -> Any:
        rows = Augmented()
        return (rows[index] for index in range(ROWS))


class Net(LightningModule):
    """A model with dropout that notes rows and losses, with metric objects of which two share their state."""

    def __init__(self, job: str) -> None:
        super().__init__()
        self.job = job
        self.automatic_optimization = job != "manual"
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.error, self.scores = MeanAbsoluteError(), MetricCollection([BinaryPrecision(), BinaryRecall()])
        self.rows: list[Any] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, rows = batch["a"] if self.job == "two_loaders" else batch
        if self.job == "two_loaders":
            rows = torch.cat([rows, batch["b"][2]])
        guess = self.net(x)
        loss = nn.functional.mse_loss(guess, y)
        self.error(guess, y)
        self.scores.update(guess.detach() - 2.0, y > 2.0)
        self.log("error", self.error, on_step=True, on_epoch=True)
        self.log_dict(self.scores, on_step=False, on_epoch=True)
        self.rows.append(rows.tolist())
        self.losses.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.net(batch[0]).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        if self.job == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val"}
        steps = self.trainer.estimated_stepping_batches if self.job == "estimated" else 60
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(steps))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class SaveEverywhere(Callback):
    """Writes a checkpoint at every epoch's start and at every batch's, validation's and epoch's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[tuple[Path, int]] = []

    def _save(self, trainer: Trainer, name: str) -> None:
        path = self.folder / f"{name}{trainer.total_batches}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append((path, trainer.total_batches))

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        self._save(trainer, "start")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self._save(trainer, "epoch")


JOBS = """plain workers two_loaders manual plateau stream accumulation_changes early_stopping max_steps double
estimated"""


def loaders(job: str) -> Any:
    workers = 2 if job == "workers" else 0
    if job == "stream":
        return DataLoader(Stream(), batch_size=4)
    train = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=workers)
    return {"a": train, "b": DataLoader(Augmented(), batch_size=7, shuffle=True)} if job == "two_loaders" else train


def train(job: str, callbacks: Any = (), ckpt_path: Any = None) -> tuple[Trainer, Net]:
    module = Net(job)
    own: dict[str, Any] = {
        "manual": {"accumulate_grad_batches": 1},
        "stream": {"val_check_interval": 1.0},
        "accumulation_changes": {"accumulate_grad_batches": 1},
        "early_stopping": {"max_epochs": 6, "log_every_n_steps": 1},
        "max_steps": {"max_epochs": -1, "max_steps": 4, "log_every_n_steps": 1},
        "double": {"precision": "64-true"},
    }
    added: dict[str, Any] = {
        "accumulation_changes": [GradientAccumulationScheduler({0: 3, 1: 2})],
        "early_stopping": [EarlyStopping("val", patience=1)],
    }
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 3, **own.get(job, {})}
    trainer = quiet_trainer(callbacks=[*added.get(job, []), *callbacks], **settings)
    trainer.fit(module, loaders(job), DataLoader(Augmented(), batch_size=8), ckpt_path=ckpt_path)
    return trainer, module


def logged(trainer: Trainer) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "time"} for row in trainer.history_rows]


@pytest.mark.filterwarnings("ignore:The loader cannot be asked")
@pytest.mark.parametrize("job", JOBS.split())
def test_resume_from_every_place_is_exact(job: str, tmp_path: Path) -> None:
    seed_everything(1, workers=True)
    save = SaveEverywhere(tmp_path)
    whole, model = train(job, [save])
    weights = [p.detach().clone() for p in model.parameters()]
    places = save.saved[::4] if job == "workers" else save.saved
    for path, batches in places:
        seed_everything(99)
        trainer, resumed = train(job, ckpt_path=path)
        assert resumed.rows == model.rows[batches:], path.name
        assert resumed.losses == model.losses[batches:], path.name
        assert all(torch.equal(a, b) for a, b in zip(weights, resumed.parameters(), strict=True)), path.name
        assert trainer.callback_metrics == whole.callback_metrics, path.name
        assert (trainer.global_step, trainer.current_epoch) == (whole.global_step, whole.current_epoch)
        rows = logged(trainer)
        assert not rows or logged(whole)[-len(rows) :] == rows, path.name


@pytest.mark.parametrize("asks", ["", "estimated_stepping_batches"])
def test_loaders_that_are_made_anew_continue_those_in_use_and_keep_their_turn(asks: str, tmp_path: Path) -> None:
    class Growing(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(Subset(Augmented(), range(8 + 4 * self.trainer.current_epoch)), 4, shuffle=True)

        def configure_optimizers(self) -> Any:
            assert getattr(self.trainer, asks, 8) == 8  # makes loaders before it is known from where to continue
            return super().configure_optimizers()

    def fit(callbacks: Any = (), ckpt_path: Any = None) -> Growing:
        module = Growing("plain")
        trainer = quiet_trainer(max_epochs=4, callbacks=list(callbacks), reload_dataloaders_every_n_epochs=2)
        trainer.fit(module, ckpt_path=ckpt_path)
        return module

    seed_everything(1)
    save = SaveEverywhere(tmp_path)
    whole = fit([save])
    assert sorted(row for rows in whole.rows[4:8] for row in rows) == list(range(16))
    for path, batches in save.saved[1::2]:
        seed_everything(99)
        assert fit(ckpt_path=path).rows == whole.rows[batches:], path.name


def test_a_map_style_loader_continues_without_reading_the_rows_before(tmp_path: Path) -> None:
    read: list[int] = []

    class Counting(Augmented):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                trainer.save_checkpoint(tmp_path / "four.ckpt")

    loader = DataLoader(Counting(), batch_size=4, shuffle=True)
    quiet_trainer(callbacks=[Stop()]).fit(Net("plain"), loader)
    read.clear()
    quiet_trainer().fit(Net("plain"), loader, ckpt_path=tmp_path / "four.ckpt")
    assert len(read) == ROWS - 16


@pytest.mark.parametrize("between", ["validate", "test", "predict"])
def test_a_checkpoint_written_after_a_test_continues_the_training(tmp_path: Path, between: str) -> None:
    def rows() -> Any:
        return loader(shuffle=True, generator=torch.Generator().manual_seed(3))

    class Momentum(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    whole, first, second = Momentum(), Momentum(), Momentum()
    quiet_trainer(max_epochs=4).fit(whole, rows(), loader())
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(first, rows(), loader())
    getattr(trainer, between)(first, loader())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    quiet_trainer(max_epochs=4).fit(second, rows(), loader(), ckpt_path=tmp_path / "two.ckpt")
    assert torch.equal(whole.layer.weight, second.layer.weight)


def test_a_metric_of_the_validation_at_whose_end_was_saved_begins_anew(tmp_path: Path) -> None:
    class Measured(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.error = MeanAbsoluteError()
            self.found: list[float] = []

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.error(self.layer(batch[0]), batch[0][:, :1])
            self.log("error", self.error)

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.found.append(float(self.error.compute()))

    saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_on_train_epoch_end=False, save_top_k=-1)
    options: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 2}
    whole = Measured()
    quiet_trainer(callbacks=[saver], enable_checkpointing=True, **options).fit(whole, loader(8, 2), loader(4, 2))
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == len(whole.found) == 4
    for done, file in enumerate(files, start=1):
        second = Measured()
        quiet_trainer(**options).fit(second, loader(8, 2), loader(4, 2), ckpt_path=file)
        assert second.found == whole.found[done:]


@pytest.mark.parametrize("kept_by", ["manual_optimization", "optimizer_zero_grad"])
def test_gradients_that_are_kept_beyond_an_epoch_continue(tmp_path: Path, kept_by: str) -> None:
    class Keeping(BoringModel):
        """Clears its gradients at every second batch of the run, of which an epoch has three."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = kept_by != "manual_optimization"

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if not self.automatic_optimization:
                self.manual_backward(loss)
                self.optimizers().step()
                if self.trainer.total_batches % 2:
                    self.optimizers().zero_grad()
            return loss

        if kept_by == "optimizer_zero_grad":

            def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
                if self.trainer.total_batches % 2 == 0:
                    optimizer.zero_grad()

    whole, second = Keeping(), Keeping()
    quiet_trainer(max_epochs=2).fit(whole, loader(6, 2))
    first = quiet_trainer(max_epochs=1)
    first.fit(Keeping(), loader(6, 2))
    first.save_checkpoint(tmp_path / "one.ckpt")
    quiet_trainer(max_epochs=2).fit(second, loader(6, 2), ckpt_path=tmp_path / "one.ckpt")
    assert torch.equal(whole.layer.weight, second.layer.weight)


def test_resuming_beyond_max_epochs_says_what_to_set(tmp_path: Path) -> None:
    trainer, _ = train("plain")
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="max_epochs"):
        quiet_trainer(max_epochs=1).fit(Net("plain"), loaders("plain"), ckpt_path=tmp_path / "two.ckpt")


def test_weights_only_files_cannot_be_resumed(tmp_path: Path) -> None:
    trainer, _ = train("plain")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(KeyError, match="load_from_checkpoint"):
        quiet_trainer().fit(Net("plain"), loaders("plain"), ckpt_path=tmp_path / "weights.ckpt")
