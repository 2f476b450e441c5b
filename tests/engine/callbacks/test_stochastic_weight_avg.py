"""StochasticWeightAveraging: the mean of the last epochs, its schedule, batch norms, and continuing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import ModelCheckpoint, StochasticWeightAveraging
from engine.errors import EngineWarning, MisconfigurationException

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class Trace(engine.Callback):
    """Notes weights and learning rates at every epoch's start."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(pl_module.layer.weight.detach().clone())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.rates.append(round(trainer.optimizers[0].param_groups[0]["lr"], 6))


@pytest.mark.parametrize(("start", "first"), [(3, 2), ("3ep", 2), (0.5, 2), (1, 0)])
def test_the_mean_of_the_last_epochs_is_kept(tmp_path: Path, start: Any, first: int) -> None:
    trace, net = Trace(), Scripted()
    trainer(tmp_path, StochasticWeightAveraging(0.02, start), trace, max_epochs=6).fit(net, rows())
    assert torch.allclose(net.layer.weight, torch.stack(trace.weights[first:]).mean(0), atol=1e-6)


def test_the_learning_rate_goes_to_its_constant(tmp_path: Path) -> None:
    class Scheduled(Scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    trace = Trace()
    swa = StochasticWeightAveraging(0.02, 3, annealing_epochs=2, annealing_strategy="linear")
    fitted = trainer(tmp_path, swa, trace, max_epochs=7)
    fitted.fit(Scheduled(), rows())
    assert trace.rates[:3] == [0.1, 0.05, 0.025]
    assert trace.rates[-2:] == [0.02, 0.02]
    assert type(fitted.lr_scheduler_configs[0].scheduler).__name__ == "SWALR"


def test_batch_norms_are_renewed_without_a_step(tmp_path: Path) -> None:
    class Normed(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.norm(self.first(x)))

    net = Normed()
    fitted = trainer(tmp_path, StochasticWeightAveraging(0.02, 2), max_epochs=4)
    fitted.fit(net, rows())
    assert fitted.global_step == 28
    means = torch.stack([net.first(x).detach().mean(0) for x, _ in rows()])
    assert torch.allclose(net.norm.running_mean, means.mean(0), atol=1e-6)
    assert net.norm.momentum == 0.1


@pytest.mark.parametrize("step", [7, 14, 17, 21])
def test_a_continued_run_is_the_same_run(tmp_path: Path, step: int) -> None:
    def swa() -> StochasticWeightAveraging:
        return StochasticWeightAveraging(0.02, 2, annealing_epochs=3)

    whole, again = Scripted(), Scripted()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer(tmp_path, swa(), saver, max_epochs=5).fit(whole, rows())
    trainer(tmp_path, swa(), max_epochs=5).fit(again, rows(), ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert torch.equal(again.layer.weight, whole.layer.weight)


def test_training_that_ends_early_has_its_average(tmp_path: Path) -> None:
    trace, net = Trace(), Scripted()
    trainer(tmp_path, StochasticWeightAveraging(0.02, 2), trace, max_epochs=9, max_steps=21).fit(net, rows())
    assert torch.allclose(net.layer.weight, torch.stack(trace.weights[1:]).mean(0), atol=1e-6)


def test_a_scheduler_of_steps_is_replaced_with_a_word(tmp_path: Path) -> None:
    class Stepwise(Scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    with pytest.warns(EngineWarning, match="every 1 steps"):
        trainer(tmp_path, StochasticWeightAveraging(0.02, 1), max_epochs=1).fit(Stepwise(), rows())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swa_lrs": 0.1, "swa_epoch_start": 0}, "from 1"),
        ({"swa_lrs": 0.1, "swa_epoch_start": 1.5}, "from 0.0 to 1.0"),
        ({"swa_lrs": -0.1}, "positive"),
        ({"swa_lrs": []}, "positive"),
        ({"swa_lrs": "0.1"}, "positive"),
    ],
)
def test_settings_that_cannot_work(options: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        StochasticWeightAveraging(**options)


def test_one_optimizer_and_an_end_are_needed(tmp_path: Path) -> None:
    class Two(Scripted):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]

    with pytest.raises(MisconfigurationException, match="EMAWeightAveraging"):
        trainer(tmp_path, StochasticWeightAveraging(0.1), max_epochs=1).fit(Two(), rows())
    with pytest.raises(MisconfigurationException, match="no limit"):
        trainer(tmp_path, StochasticWeightAveraging(0.1, 0.5), max_epochs=-1, max_steps=3).fit(Scripted(), rows())
