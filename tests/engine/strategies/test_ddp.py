"""Two and three real processes on the CPU: the same as one process, and a sentence when one of them fails."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics
from engine import Callback, Trainer
from engine.callbacks import EarlyStopping, ModelCheckpoint
from engine.errors import EngineWarning, MisconfigurationException
from engine.strategies import DDPStrategy
from torch import nn

from tests.engine.strategies.nets import Agree, Deeper, weights
from tests.engine.toys import BoringModel, loader, quiet_trainer


def fit_on(processes: int, module: Any, train: Any, val: Any = None, **options: Any) -> Trainer:
    """Fit with so many processes; at the end every rank must have the same weights."""
    callbacks = [*options.pop("callbacks", []), Agree()]
    trainer = quiet_trainer(**{"devices": processes, "max_epochs": 2, "callbacks": callbacks, **options})
    trainer.fit(module, train, val)
    return trainer


# The same as one process.


class UnfreezeInMidEpoch(Callback):
    def on_fit_start(self, trainer: Any, module: Any) -> None:
        module.layer[0].requires_grad_(False)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        module.layer[0].requires_grad_(batch_idx > 0)


@pytest.mark.parametrize("automatic", [True, False])
def test_parameters_that_are_unfrozen_in_mid_epoch_are_synchronised_too(automatic: bool) -> None:
    module = Deeper() if automatic else ByHand()
    frozen = module.layer[0].weight.clone()
    fit_on(2, module, loader(12, 2), callbacks=[UnfreezeInMidEpoch()], max_epochs=1)
    assert not torch.equal(module.layer[0].weight, frozen)


class ByHand(Deeper):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_spawned_processes_bring_back_the_weights_of_forked_ones() -> None:
    forked, spawned = Deeper(), Deeper()
    for module, strategy in ((forked, "ddp_fork"), (spawned, "ddp_spawn")):
        trainer = fit_on(2, module, loader(12, 2), strategy=strategy, max_epochs=1)
        assert trainer.global_step == 3
    assert torch.equal(weights(forked), weights(spawned))


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_the_top_level_code_of_a_script_runs_once(strategy: str, tmp_path: Path) -> None:
    """A spawned process imports the script anew, as Python does: what stands under the guard runs once."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.engine.toys import BoringModel, loader, quiet_trainer\n"
        "if __name__ == '__main__':\n"
        "    print('before')\n"
        f"    trainer = quiet_trainer(devices=2, strategy={strategy!r}, max_epochs=1)\n"
        "    trainer.fit(BoringModel(), loader(12, 2))\n"
        "    print('after', trainer.global_step)\n"
    )
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), *sys.path])
    command = [sys.executable, str(script)]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["before", "after 3"]


class Collecting(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_rank == 0:
            gc.collect()
        return super().training_step(batch, batch_idx)


def test_a_forked_rank_leaves_the_garbage_of_its_parent_alone() -> None:
    """Destroying a store waits for its thread, which a forked process does not have."""
    cycle: list[Any] = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]  # type: ignore[attr-defined]
    cycle.append(cycle)
    del cycle
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    assert fit_on(2, Collecting(), loader(4, 2), strategy=strategy, max_epochs=1).global_step == 1


class Measuring(BoringModel):
    """Logs in every way: means, sums, extremes, batch by batch; torchmetrics with sums and with lists."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.ranks = torchmetrics.MeanMetric(), torchmetrics.SpearmanCorrCoef()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        error = (self(x) - y).abs()
        options: dict[str, Any] = {"sync_dist": True, "on_epoch": True}
        self.log("mean", error.mean(), **options)
        self.log("root", error.mean().sqrt(), on_step=True, **options)
        self.log("sum", float(len(x)), reduce_fx="sum", **options)
        self.log("max", error.max(), reduce_fx="max", **options)
        self.log("min", error.min(), reduce_fx="min", **options)
        self.mean.update(error)
        self.log("metric", self.mean)
        self.log("local", error.mean())
        self.log("first", error.mean(), rank_zero_only=True)

    def on_validation_epoch_end(self) -> None:
        self.log("at_end", 2.0, sync_dist=True)


class Seen(Callback):
    """Fails unless every rank shows the same metrics, those of its own excepted."""

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        shown = {name: float(value) for name, value in trainer.callback_metrics.items()}
        first = [name for name in shown if name.startswith("first")]
        assert bool(first) == trainer.is_global_zero
        shown = {name: value for name, value in shown.items() if name not in first}
        everywhere = trainer.strategy.gather_objects(shown)
        assert all(set(other) == set(shown) for other in everywhere)
        shared = [name for name in shown if "local" not in name and "train" not in name]
        assert all(abs(other[name] - shown[name]) < 1e-6 for other in everywhere for name in shared)


def test_evaluation_counts_every_row_once_for_any_number_of_rows_and_ranks() -> None:
    loaders = [loader(rows, batch_size=3, seed=rows) for rows in range(1, 26)]

    def validate(processes: int) -> list[dict[str, float]]:
        trainer = quiet_trainer(devices=processes, callbacks=[Seen()])
        return trainer.validate(Measuring(), loaders, verbose=False)

    alone = validate(1)
    assert [found[f"sum/dataloader_idx_{i}"] for i, found in enumerate(alone)] == list(range(1, 26))
    for processes in (2, 3):
        for i, found in enumerate(validate(processes)):
            for name, value in found.items():
                if "local" not in name and "first" not in name:
                    assert value == pytest.approx(alone[i][name], rel=1e-5), (processes, i + 1, name)


def test_validation_in_fit_monitors_a_metric_on_ranks_without_rows(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="local")
    stopper = EarlyStopping("mean", patience=1, min_delta=100.0)
    trainer = fit_on(
        3, Measuring(), loader(12, 2), loader(2, 2),
        callbacks=[saver, stopper, Seen()], enable_checkpointing=True, max_epochs=5,
    )  # fmt: skip
    assert trainer.current_epoch == 2
    assert Path(saver.best_model_path).parent == tmp_path
    assert stopper.stopped_epoch == 1


class ComputedAtTheEnd(BoringModel):
    """Its metric is computed, by all ranks together, when it is first read after the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc.update(float(batch_idx))
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("acc", self.acc)


def test_a_checkpoints_metrics_are_read_on_every_rank(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="acc", filename="{acc:.2f}")
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=40))
    trainer = fit_on(
        2,
        ComputedAtTheEnd(),
        loader(12, 2),
        strategy=strategy,
        callbacks=[saver],
        enable_checkpointing=True,
        max_epochs=1,
    )
    assert trainer.current_epoch == 1
    assert Path(saver.best_model_path).name == "acc=1.00.ckpt"


class Own(BoringModel):
    """Turns warnings into errors, which come back from the process that warns."""

    def on_validation_start(self) -> None:
        warnings.simplefilter("error", EngineWarning)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("own", batch[0].mean())
        self.log("together", batch[0].mean(), sync_dist=True)


def test_a_measure_of_each_rank_alone_is_named() -> None:
    with pytest.raises(EngineWarning, match="'own': each of the 2 processes shows the value of its own rows"):
        quiet_trainer(devices=2).validate(Own(), loader(8, 2), verbose=False)


class Lists(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.kept = torchmetrics.CatMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.kept.update(batch[1].flatten())
        self.log("norm", torchmetrics.MeanMetric()(batch[1]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.log("sum", self.kept.compute().sum())
        self.kept.reset()


@pytest.mark.parametrize("rows", [2, 7])
def test_metrics_that_keep_lists_gather_them(rows: int) -> None:
    alone, several = (
        quiet_trainer(devices=processes).validate(Lists(), loader(rows, 2), verbose=False) for processes in (1, 2)
    )
    assert several[0] == pytest.approx(alone[0], rel=1e-5)


def test_names_logged_by_one_rank_without_sync_are_nobodys_business() -> None:
    class Own(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_rank == 0:
                self.log("mine", 1.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    assert fit_on(2, Own(), loader(8, 2)).callback_metrics["mine"] == 1.0


class Normal(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))  # type: ignore[assignment]


def test_batch_norm_over_processes_needs_gpus_and_says_so() -> None:
    with pytest.raises(MisconfigurationException, match=r"on GPUs only\. Leave it out on the CPU"):
        fit_on(2, Normal(), loader(8, 2), sync_batchnorm=True)
