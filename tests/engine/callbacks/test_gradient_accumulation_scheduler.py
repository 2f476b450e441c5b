"""GradientAccumulationScheduler: how many batches make a step, epoch by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from engine.errors import MisconfigurationException

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class Steps(engine.Callback):
    def __init__(self) -> None:
        self.after: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.after.append(trainer.global_step)


def test_the_schedule_is_followed(tmp_path: Path) -> None:
    steps, schedule = Steps(), GradientAccumulationScheduler({1: 3, 3: 7})
    fitted = trainer(tmp_path, schedule, steps, max_epochs=4)
    fitted.fit(Scripted(), rows())
    assert steps.after == [7, 10, 13, 14]
    assert schedule.going_to_accumulate_grad_batches()
    assert fitted.accumulate_grad_batches == 1


def test_a_continued_run_takes_the_number_of_its_epoch(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    whole = Scripted()
    trainer(tmp_path, GradientAccumulationScheduler({0: 2, 1: 3}), saver, max_epochs=2).fit(whole, rows())
    again, steps = Scripted(), Steps()
    fitted = trainer(tmp_path, GradientAccumulationScheduler({0: 2, 1: 3}), steps, max_epochs=2)
    fitted.fit(again, rows(), ckpt_path=str(tmp_path / "epoch=1-step=5.ckpt"))
    assert steps.after == [7]
    assert torch.equal(again.layer.weight, whole.layer.weight)


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, GradientAccumulationScheduler({0: 2}), max_epochs=1)
    fitted.fit(Scripted(), rows())
    fitted.max_epochs = 2
    fitted.fit(Scripted(), rows())
    assert fitted.global_step == 8


def test_two_settings_for_one_thing_are_refused(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, GradientAccumulationScheduler({0: 2}), accumulate_grad_batches=4)
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches=4"):
        fitted.fit(Scripted(), rows())
    assert fitted.accumulate_grad_batches == 4


class ByHand(Scripted):
    """Asks for a step at every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_under_manual_optimisation_it_acts_too(tmp_path: Path) -> None:
    by_hand, automatic = ByHand(), Scripted()
    steps = []
    for net in (by_hand, automatic):
        fitted = trainer(tmp_path, GradientAccumulationScheduler({0: 1, "1ep": 3}), max_epochs=3)
        fitted.fit(net, rows())
        steps.append(fitted.global_step)
    assert steps == [7 + 3 + 3] * 2
    assert torch.allclose(by_hand.layer.weight, automatic.layer.weight, atol=1e-6)


def test_with_parity_manual_optimisation_accumulates_by_itself(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="automatic"):
        trainer(tmp_path, GradientAccumulationScheduler({0: 2}), parity="lightning").fit(ByHand(), rows())


@pytest.mark.parametrize("schedule", [{}, {-1: 2}, {0: 0}, {0: 1.5}])
def test_schedules_that_cannot_work(schedule: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"epoch \(from 0\)"):
        GradientAccumulationScheduler(schedule)
