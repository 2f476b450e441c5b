"""Averages of weights: their values, where they are used, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from engine.checkpoint_file import read
from engine.errors import MisconfigurationException
from toys import BoringModel, loader, quiet_trainer

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class Trace(engine.Callback):
    """Notes the raw weight after every step, and the weight that validation sees."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(pl_module.layer.weight.detach().clone())

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            self.validated.append(pl_module.layer.weight.detach().clone())


def ema(steps: list[torch.Tensor], decay: float) -> torch.Tensor:
    average = steps[0]
    for weight in steps[1:]:
        average = decay * average + (1 - decay) * weight
    return average


def test_the_moving_average_is_validated_and_kept(tmp_path: Path) -> None:
    trace, net = Trace(), Scripted()
    trainer(tmp_path, EMAWeightAveraging(decay=0.8), trace, max_epochs=3).fit(net, rows(), rows())
    for epoch in range(3):
        assert torch.allclose(trace.validated[epoch], ema(trace.steps[: 7 * (epoch + 1)], 0.8), atol=1e-6)
    assert torch.allclose(net.layer.weight, ema(trace.steps, 0.8), atol=1e-6)


def test_training_itself_is_not_changed(tmp_path: Path) -> None:
    with_average, without = Trace(), Trace()
    trainer(tmp_path, EMAWeightAveraging(decay=0.8), with_average).fit(Scripted(), rows(), rows())
    trainer(tmp_path, without).fit(Scripted(), rows(), rows())
    assert all(torch.equal(a, b) for a, b in zip(with_average.steps, without.steps, strict=True))


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({"update_every_n_steps": 3}, [0, 3, 6, 9, 12]),
        ({"update_starting_at_step": 10}, [10, 11, 12, 13]),
        ({"update_every_n_steps": "3ba", "update_starting_at_step": "4ba"}, [6, 9, 12]),
        ({"update_every_n_steps": 0, "update_starting_at_epoch": 0}, [6, 13]),
        ({"update_starting_at_step": 12, "update_starting_at_epoch": 1}, [12, 13, 13]),
    ],
)
def test_updates_can_be_rarer_or_later(tmp_path: Path, options: Any, counted: list[int]) -> None:
    trace, net = Trace(), Scripted()
    trainer(tmp_path, EMAWeightAveraging(decay=0.5, **options), trace, max_epochs=2).fit(net, rows())
    assert torch.allclose(net.layer.weight, ema([trace.steps[i] for i in counted], 0.5), atol=1e-6)


def test_before_the_first_update_the_weights_are_used(tmp_path: Path) -> None:
    trace, net = Trace(), Scripted()
    saver = ModelCheckpoint(dirpath=tmp_path)
    late = EMAWeightAveraging(update_starting_at_step=99)
    trainer(tmp_path, late, trace, saver, max_epochs=1).fit(net, rows(), rows())
    assert torch.equal(trace.validated[0], trace.steps[-1])
    assert torch.equal(net.layer.weight, trace.steps[-1])
    assert "current_model_state" not in read(saver.best_model_path)


def test_a_plain_mean_and_own_formulas(tmp_path: Path) -> None:
    for options in ({}, {"avg_fn": lambda average, weight, n: average + (weight - average) / (n + 1)}):
        trace, net = Trace(), Scripted()
        trainer(tmp_path, WeightAveraging(**options), trace, max_epochs=1).fit(net, rows())
        assert torch.allclose(net.layer.weight, torch.stack(trace.steps).mean(0), atol=1e-6)


def test_should_update_can_be_overridden(tmp_path: Path) -> None:
    class AtEpochs(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx is not None

    trace, net = Trace(), Scripted()
    trainer(tmp_path, AtEpochs("cpu"), trace, max_epochs=2).fit(net, rows())
    assert torch.allclose(net.layer.weight, (trace.steps[6] + trace.steps[13]) / 2, atol=1e-6)


def test_the_file_holds_both(tmp_path: Path) -> None:
    trace, saver = Trace(), ModelCheckpoint(dirpath=tmp_path)
    trainer(tmp_path, EMAWeightAveraging(decay=0.8), trace, saver, max_epochs=1).fit(Scripted(), rows(), rows())
    checkpoint = read(saver.best_model_path)
    assert torch.allclose(checkpoint["state_dict"]["layer.weight"], ema(trace.steps, 0.8), atol=1e-6)
    assert torch.equal(checkpoint["current_model_state"]["layer.weight"], trace.steps[-1])
    result = trainer(tmp_path).validate(Scripted(), rows(), ckpt_path=saver.best_model_path, verbose=False)
    net = Scripted()
    net.load_state_dict(checkpoint["state_dict"])
    assert result == trainer(tmp_path).validate(net, rows(), verbose=False)


@pytest.mark.parametrize("step", [3, 7, 9])
def test_a_continued_run_is_the_same_run(tmp_path: Path, step: int) -> None:
    whole, again = Scripted(), Scripted()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer(tmp_path, EMAWeightAveraging(decay=0.8), saver).fit(whole, rows(), rows())
    trainer(tmp_path, EMAWeightAveraging(decay=0.8)).fit(
        again, rows(), rows(), ckpt_path=str(tmp_path / f"step={step}.ckpt")
    )
    assert torch.equal(again.layer.weight, whole.layer.weight)


def test_an_interrupted_validation_puts_the_weights_back(tmp_path: Path) -> None:
    class Fails(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if not self.trainer.sanity_checking:
                raise RuntimeError("in validation")

    trace, net = Trace(), Fails()
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    with pytest.raises(RuntimeError, match="in validation"):
        trainer(tmp_path, EMAWeightAveraging(decay=0.8), trace, saver).fit(net, rows(), rows())
    checkpoint = read(tmp_path / "last.ckpt")
    assert torch.equal(checkpoint["current_model_state"]["layer.weight"], trace.steps[-1])
    assert torch.allclose(checkpoint["state_dict"]["layer.weight"], ema(trace.steps, 0.8), atol=1e-6)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_buffers_are_averaged_or_taken_over(tmp_path: Path, use_buffers: bool) -> None:
    class Normed(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.norm(x))

    class Means(engine.Callback):
        means: list[torch.Tensor]

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.means = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.means.append(pl_module.norm.running_mean.clone())

    watch, net = Means(), Normed()
    trainer(tmp_path, EMAWeightAveraging(decay=0.5, use_buffers=use_buffers), watch, max_epochs=1).fit(net, rows())
    expected = ema(watch.means, 0.5) if use_buffers else watch.means[-1]
    assert torch.allclose(net.norm.running_mean, expected, atol=1e-6)
    assert int(net.norm.num_batches_tracked) == 7


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    class Tied(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.other = self.layer

    net, saver = Tied(), ModelCheckpoint(dirpath=tmp_path)
    trainer(tmp_path, EMAWeightAveraging(decay=0.5), saver, max_epochs=1).fit(net, rows(), rows())
    state = read(saver.best_model_path)["state_dict"]
    assert torch.equal(state["layer.weight"], state["other.weight"])
    assert torch.equal(state["layer.weight"], net.layer.weight)


def test_two_formulas_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="Keep one"):
        WeightAveraging(avg_fn=lambda a, b, n: a, multi_avg_fn=lambda *_: None)


def test_a_parameter_added_in_mid_training_is_said() -> None:
    class Grows(BoringModel):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.extra = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(RuntimeError, match=r"averages 2 tensors, and `Grows` has 3 now\. Make parameters"):
        quiet_trainer(max_epochs=2, callbacks=[EMAWeightAveraging()]).fit(Grows(), loader())
