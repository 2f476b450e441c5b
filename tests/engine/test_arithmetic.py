"""The arithmetic of limits, intervals, accumulation and frequency, against a model of each in a few lines.

A job is run on a module that computes nothing to speak of; what happened at which batch is compared with the model.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from engine.data import limited
from engine.errors import MisconfigurationException
from engine.legacy import turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from toys import BoringModel, Rows, quiet_trainer

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
LENGTHS = st.integers(1, 9)


class Journal(BoringModel):
    """Notes (epoch, batches done) at each optimizer step, validation and scheduler step."""

    def __init__(self, interval: str = "step", frequency: int = 1) -> None:
        super().__init__(features=1)
        self.interval, self.frequency = interval, frequency
        self.done = 0
        self.steps: list[tuple[int, int]] = []
        self.validations: list[tuple[int, int]] = []
        self.rates: list[tuple[int, int]] = []
        self.trained: list[int] = []

    def now(self) -> tuple[int, int]:
        return self.current_epoch, self.done

    def on_train_epoch_start(self) -> None:
        self.done = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.done = batch_idx + 1
        self.trained.append(batch_idx)
        return self(batch).mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps.append(self.now())

    def on_validation_start(self) -> None:
        self.validations.append(self.now())

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        pass

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.rates.append(self.now())
        scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return [optimizer], [{"scheduler": scheduler, "interval": self.interval, "frequency": self.frequency}]


def run(model: Journal, batches: int, **options: Any) -> Any:
    trainer = quiet_trainer(num_sanity_val_steps=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, DataLoader(Rows(batches)), DataLoader(Rows(1)))
    return trainer


def model_of_limit(batches: int, limit: int | float) -> int:
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


@given(batches=st.integers(1, 1000), limit=st.one_of(st.integers(0, 1100), st.floats(0, 1)))
def test_r51_a_limit_is_a_number_or_a_share_rounded_down(batches: int, limit: int | float) -> None:
    expected = model_of_limit(batches, limit)
    if isinstance(limit, float) and expected == 0 and limit > 0:
        with pytest.raises(MisconfigurationException, match="leaves none"):
            limited("limit_train_batches", batches, limit)
    else:
        assert limited("limit_train_batches", batches, limit) == expected


@FEW
@given(batches=LENGTHS, limit=st.one_of(st.integers(1, 12), st.floats(0.5, 1)), epochs=st.integers(0, 3))
def test_a_run_trains_on_as_many_batches_as_its_limit_says(batches: int, limit: int | float, epochs: int) -> None:
    expected = model_of_limit(batches, limit)
    if expected == 0:
        return
    model = Journal()
    trainer = run(model, batches, limit_train_batches=limit, max_epochs=epochs)
    assert model.trained == list(range(expected)) * epochs
    assert trainer.num_training_batches == expected


def model_of_steps(batches: int, accumulate: int, epochs: int) -> list[tuple[int, int]]:
    due = [done for done in range(1, batches + 1) if done % accumulate == 0 or done == batches]
    return [(epoch, done) for epoch in range(epochs) for done in due]


PARITY = st.sampled_from([None, "lightning"])


@FEW
@given(batches=LENGTHS, accumulate=st.integers(1, 5), epochs=st.integers(1, 3), parity=PARITY)
def test_steps_come_at_full_windows_and_at_the_epochs_end(
    batches: int, accumulate: int, epochs: int, parity: str | None
) -> None:
    model, expected = Journal(), model_of_steps(batches, accumulate, epochs)
    trainer = run(model, batches, accumulate_grad_batches=accumulate, max_epochs=epochs, parity=parity)
    assert model.steps == expected
    assert trainer.global_step == len(expected) == trainer.estimated_stepping_batches


@FEW
@given(batches=LENGTHS, accumulate=st.integers(1, 4), most=st.integers(0, 20), epochs=st.integers(1, 3))
def test_max_steps_ends_in_the_middle_of_an_epoch(batches: int, accumulate: int, most: int, epochs: int) -> None:
    model, expected = Journal(), model_of_steps(batches, accumulate, epochs)[:most]
    trainer = run(model, batches, accumulate_grad_batches=accumulate, max_steps=most, max_epochs=epochs)
    assert model.steps == expected
    assert trainer.estimated_stepping_batches == len(expected)


@FEW
@given(batches=LENGTHS, window=st.integers(1, 5), has_length=st.booleans())
def test_gradients_of_a_window_are_divided_by_its_true_size(batches: int, window: int, has_length: bool) -> None:
    class Sums(Journal):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.validations.append(self.layer.bias.grad.item())  # the mean over the window's batches of d(bias) = 1

    model, rows = Sums(), DataLoader(Rows(batches))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(accumulate_grad_batches=window).fit(model, rows if has_length else iter(list(rows)))
    assert model.validations == pytest.approx([1.0] * math.ceil(batches / window))


def model_of_validations(batches: int, interval: int | float, every: int | None, epochs: int) -> list[tuple[int, int]]:
    size = interval if isinstance(interval, int) else max(1, int(batches * interval))
    found = []
    for epoch in range(epochs):
        for done in range(1, batches + 1):
            count = done if every is not None else epoch * batches + done
            if count % size == 0 and (every is None or (epoch + 1) % every == 0):
                found.append((epoch, done))
    return found


@FEW
@given(
    batches=LENGTHS,
    interval=st.one_of(st.integers(1, 12), st.floats(0.05, 1)),
    every=st.one_of(st.none(), st.integers(1, 3)),
    epochs=st.integers(1, 4),
    parity=PARITY,
)
def test_validation_comes_at_its_interval(
    batches: int, interval: int | float, every: int | None, epochs: int, parity: str | None
) -> None:
    options = {"val_check_interval": interval, "check_val_every_n_epoch": every, "max_epochs": epochs}
    model = Journal()
    if isinstance(interval, float) and every is None:
        with pytest.raises(MisconfigurationException, match="counts batches"):
            quiet_trainer(**options)
    elif isinstance(interval, int) and every is not None and interval > batches:
        with pytest.raises(ValueError, match="check_val_every_n_epoch=None"):
            run(model, batches, parity=parity, **options)
    else:
        run(model, batches, parity=parity, **options)
        assert model.validations == model_of_validations(batches, interval, every, epochs)


def model_of_rates(
    steps: list[tuple[int, int]], batches: int, interval: str, frequency: int, parity: bool
) -> list[tuple[int, int]]:
    if interval == "epoch":
        return [(epoch, done) for epoch, done in steps if done == batches and (epoch + 1) % frequency == 0]
    if parity:  # batches of the epoch are counted, and looked at where a step was due
        return [(epoch, done) for epoch, done in steps if done % frequency == 0]
    return [at for count, at in enumerate(steps, 1) if count % frequency == 0]


@FEW
@given(
    batches=LENGTHS,
    accumulate=st.integers(1, 4),
    interval=st.sampled_from(["step", "epoch"]),
    frequency=st.integers(1, 4),
    parity=PARITY,
)
def test_r48_schedulers_step_at_their_interval_and_frequency(
    batches: int, accumulate: int, interval: str, frequency: int, parity: str | None
) -> None:
    model = Journal(interval, frequency)
    run(model, batches, accumulate_grad_batches=accumulate, max_epochs=3, parity=parity)
    steps = model_of_steps(batches, accumulate, 3)
    assert model.rates == model_of_rates(steps, batches, interval, frequency, parity is not None)


@FEW
@given(batches=LENGTHS, every=st.integers(0, 5), epochs=st.integers(1, 3), parity=PARITY)
def test_loggers_write_every_n_steps_and_at_an_epochs_ends(
    batches: int, every: int, epochs: int, parity: str | None
) -> None:
    class Logs(Journal):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0)
            return super().training_step(batch, batch_idx)

    trainer = run(Logs(), batches, log_every_n_steps=every, max_epochs=epochs, parity=parity)
    ends = set() if parity else {e * batches + at for e in range(epochs) for at in (0, batches - 1)}
    expected = [s for s in range(batches * epochs) if every and ((s + 1) % every == 0 or s in ends)]
    assert [row["step"] for row in trainer.history_rows if "x" in row] == expected


@given(frequencies=st.lists(st.integers(1, 4), min_size=1, max_size=3), batch_idx=st.integers(0, 60))
def test_optimizers_of_1_x_take_turns_by_their_frequency(frequencies: list[int], batch_idx: int) -> None:
    order = [index for index, count in enumerate(frequencies) for _ in range(count)]
    assert turn(frequencies, batch_idx, len(frequencies)) == [order[batch_idx % len(order)]]


@FEW
@given(
    values=st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 9)), min_size=1, max_size=8),
    reduction=st.sampled_from(["mean", "sum", "max", "min"]),
)
def test_r55_the_epochs_value_is_the_reduction_of_its_values(values: list[Any], reduction: str) -> None:
    class Logs(Journal):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            value, size = values[batch_idx]
            self.log("x", value, on_step=False, on_epoch=True, reduce_fx=reduction, batch_size=size)
            return super().training_step(batch, batch_idx)

    trainer = run(Logs(), len(values), max_epochs=1)
    numbers, sizes = zip(*values, strict=True)
    expected = {
        "mean": sum(v * s for v, s in values) / sum(sizes), "sum": sum(numbers), "max": max(numbers),
        "min": min(numbers),
    }[reduction]  # fmt: skip
    assert float(trainer.callback_metrics["x"]) == pytest.approx(expected, rel=1e-5, abs=1e-4)
