"""LearningRateMonitor: names, moments and values. Its numbers under `parity` are replayed with the traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.callbacks import LearningRateMonitor
from engine.errors import EngineWarning, MisconfigurationException
from engine.loggers import Logger

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class ByKeyword(Logger):
    """Its step has a name only, as the base class lets one write it."""

    name, version = "by keyword", "0"

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def log_metrics(self, metrics: Any, *, step: int | None = None) -> None:
        self.names |= set(metrics)


class Memory(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.points.append((step, dict(metrics)))

    def of(self, name: str) -> list[tuple[int | None, float]]:
        return [(step, metrics[name]) for step, metrics in self.points if name in metrics]


def run(path: Path, monitor: LearningRateMonitor, configure: Any, **options: Any) -> Memory:
    class Net(Scripted):
        def configure_optimizers(self) -> Any:
            return configure(self)

    memory = Memory()
    fitted = trainer(path, monitor, **{"logger": memory, "max_epochs": 2, "log_every_n_steps": 1, **options})
    fitted.fit(Net(), rows())
    memory.metrics = dict(fitted.callback_metrics)
    return memory


def stepwise(net: Any) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def epochwise(net: Any) -> Any:
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0, betas=(0.8, 0.99))
    return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "name": "plan"}]


def test_a_step_schedule_is_logged_at_steps(tmp_path: Path) -> None:
    memory = run(tmp_path, LearningRateMonitor(), stepwise)
    assert memory.of("lr-SGD") == [(step, 0.5**step) for step in range(14)]


def test_an_epoch_schedule_is_logged_at_epochs_under_its_name(tmp_path: Path) -> None:
    memory = run(tmp_path, LearningRateMonitor(), epochwise)
    assert memory.of("plan") == [(0, 1.0), (7, 0.5)]
    assert float(memory.metrics["plan"]) == 0.5


@pytest.mark.parametrize(("interval", "count"), [("step", 14), ("epoch", 2)])
def test_an_interval_may_be_imposed(tmp_path: Path, interval: Any, count: int) -> None:
    assert len(run(tmp_path, LearningRateMonitor(interval), stepwise).of("lr-SGD")) == count


def test_steps_are_logged_when_the_logger_writes(tmp_path: Path) -> None:
    memory = run(tmp_path, LearningRateMonitor("step"), stepwise, log_every_n_steps=3, parity="lightning")
    assert [step for step, _ in memory.of("lr-SGD")] == [2, 5, 8, 11]


def test_without_a_schedule_both_are_logged(tmp_path: Path) -> None:
    memory = run(tmp_path, LearningRateMonitor(), lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
    assert len(memory.of("lr-SGD")) == 16


def test_the_history_of_the_run_has_them(tmp_path: Path) -> None:
    class Net(Scripted):
        def configure_optimizers(self) -> Any:
            return epochwise(self)

    history = trainer(tmp_path, LearningRateMonitor(), logger=Memory()).fit(Net(), rows())
    assert history["plan"] == [1.0, 0.5, 0.25]


def test_momentum_and_weight_decay(tmp_path: Path) -> None:
    options: dict[str, Any] = {"log_momentum": True, "log_weight_decay": True, "log_key_prefix": "optim/"}
    memory = run(tmp_path, LearningRateMonitor(**options), stepwise)
    assert memory.of("optim/lr-SGD-momentum")[0] == (0, 0.9)
    assert memory.of("optim/lr-SGD-weight_decay")[0] == (0, 0.01)
    assert run(tmp_path, LearningRateMonitor(**options), epochwise).of("optim/plan-momentum")[0] == (0, 0.8)


def test_an_optimizer_without_weight_decay_has_none(tmp_path: Path) -> None:
    monitor = LearningRateMonitor(log_weight_decay=True)
    memory = run(tmp_path, monitor, lambda net: torch.optim.LBFGS(net.parameters(), lr=0.01))
    assert memory.of("lr-LBFGS-weight_decay")[0] == (0, 0.0)


def test_several_optimizers_and_groups_get_names_of_their_own(tmp_path: Path) -> None:
    def configure(net: Any) -> Any:
        one = torch.optim.SGD([{"params": [net.layer.weight], "name": "body"}], lr=0.1)
        two = torch.optim.SGD([{"params": [net.layer.bias]}, {"params": [torch.nn.Parameter(torch.ones(1))]}], lr=0.2)
        return [one, two], [torch.optim.lr_scheduler.ExponentialLR(two, 0.5)]

    memory = run(tmp_path, LearningRateMonitor("epoch"), configure)
    assert sorted(memory.points[0][1]) == ["lr-SGD-1/body", "lr-SGD/pg1", "lr-SGD/pg2"]


def test_groups_of_one_name_are_refused(tmp_path: Path) -> None:
    def configure(net: Any) -> Any:
        return torch.optim.SGD(
            [{"params": [net.layer.weight], "name": "a"}, {"params": [net.layer.bias], "name": "a"}], lr=0.1
        )

    with pytest.raises(MisconfigurationException, match=r"several parameter groups named \['a'\]"):
        run(tmp_path, LearningRateMonitor(), configure)


def test_a_logger_is_needed(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="logger=CSVLogger"):
        run(tmp_path, LearningRateMonitor(), stepwise, logger=False)


def test_an_interval_that_does_not_exist() -> None:
    with pytest.raises(MisconfigurationException, match="'batch'"):
        LearningRateMonitor("batch")  # type: ignore[arg-type]


def test_a_logger_that_fails_ends_no_training(tmp_path: Path) -> None:
    class Fails(Memory):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if any(name.startswith("lr-") for name in metrics):
                raise OSError("nobody there")

    made = trainer(tmp_path, LearningRateMonitor("epoch"), max_epochs=2, logger=Fails())
    with pytest.warns(EngineWarning, match="nobody there"):
        made.fit(Scripted(), rows())
    assert made.current_epoch == 2


def test_a_logger_may_take_the_step_by_its_name_only(tmp_path: Path) -> None:
    logger = ByKeyword()
    trainer(tmp_path, LearningRateMonitor("epoch"), max_epochs=1, logger=logger).fit(Scripted(), rows())
    assert "lr-SGD" in logger.names
