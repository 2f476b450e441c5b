"""Throughput: the rates against a clock that the test turns, in every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from engine.callbacks import ProgressBar, ThroughputMonitor
from engine.callbacks import throughput_monitor as module
from engine.callbacks.throughput_monitor import peak_flops
from engine.errors import MisconfigurationException
from engine.loggers import Logger
from torch.utils.data import DataLoader

from tests.engine.toys import BoringModel, loader, quiet_trainer


class ListLogger(Logger):
    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


class Timed(BoringModel):
    """Training batches take half a second, the first one ten; other batches a quarter. By the clock of the test."""

    flops_per_batch = 4000

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.now = now

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.now[0] += 0.5 if self.trainer.total_batches else 10.0
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.now[0] += 0.25
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.now[0] += 0.25
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.now[0] += 0.25
        return super().predict_step(batch, batch_idx)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [50.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    return clock


def rates(logger: ListLogger, stage: str) -> list[dict[str, float]]:
    """The rows of one stage, without its name."""
    rows = [{key: value for key, value in row.items() if key.startswith(f"{stage}/")} for _, row in logger.rows]
    return [{key.removeprefix(f"{stage}/"): value for key, value in row.items()} for row in rows if row]


def test_rates_of_training_without_the_first_batch_and_without_validation(now: list[float]) -> None:
    logger = ListLogger()
    monitor = ThroughputMonitor(
        lambda batch: len(batch[0]), length_fn=lambda batch: batch[0].numel(), available_flops=80_000
    )
    trainer = quiet_trainer(callbacks=[monitor], logger=logger, log_every_n_steps=1, max_epochs=2)
    trainer.fit(Timed(now), loader(), loader())
    rows = rates(logger, "train")
    assert len(rows) == 5
    for row in rows:
        assert row["device/batches_per_sec"] == pytest.approx(2)
        assert row["device/samples_per_sec"] == pytest.approx(8)
        assert row["device/items_per_sec"] == pytest.approx(32)
        assert row["device/flops_per_sec"] == pytest.approx(8000)
        assert row["device/mfu"] == pytest.approx(0.1)
    assert rows[-1]["samples"] == 24
    assert "batches_per_sec" not in rows[-1], "one process is the whole"
    assert "train/device/batches_per_sec" in trainer.callback_metrics
    validation = rates(logger, "validate")
    assert [row["device/batches_per_sec"] for row in validation] == [pytest.approx(4)] * 2


def test_nothing_is_measured_between_two_loggings(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[int] = []
    real = ThroughputMonitor._mark
    monkeypatch.setattr(
        ThroughputMonitor, "_mark", lambda self, trainer: (marks.append(trainer.log_step), real(self, trainer))
    )
    trainer = quiet_trainer(callbacks=[ThroughputMonitor()], logger=ListLogger(), log_every_n_steps=10)
    trainer.fit(Timed(now), loader(25 * 4))
    assert marks == [0, 9, 19, 24]


def test_the_window_slides(now: list[float]) -> None:
    class Slower(Timed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.now[0] += 1.5 if batch_idx >= 10 else 0.0
            return super().training_step(batch, batch_idx)

    logger = ListLogger()
    monitor = ThroughputMonitor(window_size=5)
    quiet_trainer(callbacks=[monitor], logger=logger, log_every_n_steps=1).fit(Slower(now), loader(20 * 4))
    assert rates(logger, "train")[-1]["device/batches_per_sec"] == pytest.approx(0.5)


def test_a_hook_of_a_subclass_is_called_when_it_is_due_and_no_more(now: list[float]) -> None:
    class Mine(ThroughputMonitor):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            called.append(str(trainer.state.stage))

    called: list[str] = []
    trainer = quiet_trainer(callbacks=[Mine()], logger=ListLogger(), max_epochs=2)
    trainer.fit(Timed(now), loader(), loader())
    trainer.validate(Timed(now), loader())
    assert called == ["train"]


def test_test_and_predict(now: list[float]) -> None:
    logger = ListLogger()
    trainer = quiet_trainer(callbacks=[ThroughputMonitor()], logger=logger)
    trainer.test(Timed(now), loader(), verbose=False)
    trainer.predict(Timed(now), loader())
    for stage in ("test", "predict"):
        (row,) = rates(logger, stage)
        assert row["device/samples_per_sec"] == pytest.approx(16)


def test_a_batch_without_tensors_needs_a_function(now: list[float]) -> None:
    class Words(Timed):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    trainer = quiet_trainer(callbacks=[ThroughputMonitor()])
    with pytest.raises(MisconfigurationException, match="batch_size_fn"):
        trainer.fit(Words(now), DataLoader([1, 2], collate_fn=lambda rows: {"n": rows[0]}))


@pytest.mark.parametrize(
    ("name", "half", "expected"),
    [
        ("NVIDIA H200", True, 989e12),
        ("NVIDIA H100 PCIe", True, 756e12),
        ("NVIDIA A100-SXM4-80GB", False, 19.5e12),
        ("Tesla T4", True, 65e12),
        ("NVIDIA L40S", True, 362e12),
        ("NVIDIA L4", True, 121e12),
        ("NVIDIA GeForce RTX 4090", True, 165e12),
        ("Some other device", True, None),
    ],
)
def test_peaks_of_common_devices(name: str, half: bool, expected: float | None) -> None:
    assert peak_flops(name, half) == expected


def test_the_bar_shows_the_latest_rates_of_training_beside_the_metrics(now: list[float]) -> None:
    monitor = ThroughputMonitor(length_fn=lambda batch: 25 * batch[0].numel(), available_flops=80_000)
    trainer, model = quiet_trainer(callbacks=[monitor], logger=ListLogger(), log_every_n_steps=1), Timed(now)
    trainer.fit(model, loader(), loader())
    shown = ProgressBar().get_metrics(trainer, model)
    assert {name: shown[name] for name in ("samples/s", "tokens/s", "MFU")} == {
        "samples/s": "8.0", "tokens/s": "800", "MFU": "10%",
    }  # fmt: skip


def test_without_rates_the_bar_shows_none() -> None:
    assert ThroughputMonitor().bar_metrics == {}
