"""Profilers: what they measure, print and write."""

from __future__ import annotations

import json
import pstats
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.errors import MisconfigurationException
from engine.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
    select_profiler,
)
from torch.utils.data import DataLoader

from tests.engine.toys import BoringModel, Rows, quiet_trainer

STEP = "[LightningModule]Net.training_step"


def _cells(report: str, name: str) -> list[str]:
    return next(line for line in report.splitlines() if line.startswith(name)).removeprefix(name).split()


def test_simple_counts_and_adds_up() -> None:
    profiler = SimpleProfiler()
    profiler.setup("fit")
    for _ in range(3):
        with profiler.profile(STEP), profiler.profile("inner"):
            time.sleep(0.002)
    report = profiler.summary()
    total, mean, calls, percent = _cells(report, STEP)
    assert calls == "3"
    assert float(total) >= 0.006
    assert float(mean) == pytest.approx(1000 * float(total) / 3, abs=0.4)
    assert 0 < float(percent) <= 100
    assert report.startswith("FIT profile")
    assert report.index(STEP) < report.index("inner")


def test_simple_without_the_extra_columns() -> None:
    profiler = SimpleProfiler(extended=False)
    with profiler.profile("a"):
        pass
    assert len(_cells(profiler.summary(), "a")) == 2
    assert "Percent" not in profiler.summary()


def test_simple_counts_an_action_inside_itself_and_one_that_fails() -> None:
    profiler = SimpleProfiler()
    with suppress(KeyError), profiler.profile("a"), profiler.profile("a"):
        raise KeyError
    assert _cells(profiler.summary(), "a")[2] == "2"


def test_an_empty_report_has_its_header() -> None:
    assert "Action" in SimpleProfiler().summary()


@pytest.mark.parametrize("profiler", [SimpleProfiler(), AdvancedProfiler(), PyTorchProfiler()])
def test_stopping_what_never_started_is_an_error(profiler: Profiler) -> None:
    with pytest.raises(ValueError, match="with profiler"):
        profiler.stop("a")


def test_describe_prints_or_appends_to_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for profiler in (SimpleProfiler(), SimpleProfiler(filename="times")):
        profiler.setup("fit", 0, tmp_path / "logs")
        with profiler.profile("a"):
            pass
        profiler.describe()
    assert capsys.readouterr().out.count("FIT profile") == 1
    profiler.describe()
    assert (tmp_path / "logs" / "fit-times-0.txt").read_text().count("FIT profile") == 2


def test_describe_is_silent_on_other_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("engine.profilers.rank_zero_only.rank", 1)
    SimpleProfiler().describe()
    assert capsys.readouterr().out == ""


def _slow_outer() -> None:
    time.sleep(0.001)


def _slow_inner() -> None:
    time.sleep(0.001)


def test_advanced_lists_functions_under_their_own_action(tmp_path: Path) -> None:
    profiler = AdvancedProfiler(tmp_path, dump_stats=True)
    with profiler.profile("outer"):
        _slow_outer()
        with profiler.profile("[Net]inner"):
            _slow_inner()
        _slow_outer()
    outer, inner = profiler.summary().split("[Net]inner")
    assert "_slow_outer" in outer
    assert "_slow_inner" not in outer
    assert "_slow_inner" in inner
    stats = pstats.Stats(str(tmp_path / "profile-outer.prof"))
    assert any(name == "_slow_outer" and calls[0] == 2 for (_, _, name), calls in stats.stats.items())  # type: ignore[attr-defined]
    assert (tmp_path / "profile-_Net_inner.prof").exists()


def test_advanced_lets_go_of_python_after_an_error() -> None:
    profiler = AdvancedProfiler()
    profiler.start("a")
    profiler.teardown("fit")
    other = AdvancedProfiler()
    with other.profile("b"):
        _slow_inner()
    assert "_slow_inner" in other.summary()


def _train(profiler: Profiler, steps: int) -> None:
    profiler.setup("fit", 0)
    for _ in range(steps):
        with profiler.profile("batch"), profiler.profile(STEP):
            torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.describe()
    profiler.teardown("fit")


def test_pytorch_writes_a_trace_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train(PyTorchProfiler(tmp_path), steps=6)
    assert "aten::mm" in capsys.readouterr().out
    (trace,) = tmp_path.glob("fit-trace-0-*.pt.trace.json")
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("aten::mm") == 3
    assert STEP in names


def test_pytorch_says_when_the_run_was_too_short(capsys: pytest.CaptureFixture[str]) -> None:
    _train(PyTorchProfiler(), steps=1)
    assert "nothing recorded in 1 steps" in capsys.readouterr().out


def test_pytorch_takes_arguments_of_torch_and_can_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    profiler = PyTorchProfiler(export_to_chrome=False, schedule=None, group_by_input_shapes=True, row_limit=-1)
    _train(profiler, steps=2)
    _train(profiler, steps=2)
    out = capsys.readouterr().out
    assert out.count("FIT profile") == 2
    assert out.count("[[8, 8], [8, 8]]") >= 2


def test_profilers_by_name() -> None:
    assert type(select_profiler("simple")) is SimpleProfiler
    assert type(select_profiler("Advanced")) is AdvancedProfiler
    assert type(select_profiler("pytorch")) is PyTorchProfiler
    own = SimpleProfiler()
    assert select_profiler(own) is own
    off = select_profiler(None)
    assert isinstance(off, PassThroughProfiler)
    assert not off.is_on
    assert own.is_on
    with off.profile("anything"):
        assert off.summary() == ""


@pytest.mark.parametrize("value", ["simpel", 3, SimpleProfiler])
def test_other_profilers_are_refused(value: object) -> None:
    with pytest.raises(MisconfigurationException, match="'simple', 'advanced', 'pytorch'"):
        select_profiler(value)  # type: ignore[arg-type]


class Slow(Rows):
    """Data that take their time, as a column of numbers and its doubles."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        time.sleep(0.002)
        return torch.ones(4), torch.ones(1)


class SlowSGD(torch.optim.SGD):
    """An optimizer that takes its time, and may fail."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        time.sleep(0.004)
        if self.fails:
            raise KeyError("in the step")
        return super().step(closure)


class Slowly(BoringModel):
    """Trains with it, automatically or by hand."""

    def __init__(self, by_hand: bool = False, fails: bool = False) -> None:
        super().__init__()
        self.automatic_optimization, self.fails = not by_hand, fails

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = SlowSGD(self.parameters(), lr=0.1)
        optimizer.fails = self.fails
        return optimizer


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_table_accounts_for_the_time_of_a_run(by_hand: bool) -> None:
    profiler = SimpleProfiler()
    trainer = quiet_trainer(profiler=profiler, max_epochs=2)
    trainer.fit(Slowly(by_hand), DataLoader(Slow(24), 4), DataLoader(Slow(8), 4))
    whole = time.perf_counter() - profiler.start_time
    measured = {name.partition("]")[2]: seconds for name, (_, seconds) in profiler.totals.items()}
    waits = measured["Slowly.train_dataloader_next"], measured["Slowly.validation_dataloader_next"]
    assert waits[0] >= 2 * 24 * 0.002
    assert waits[1] >= 2 * 8 * 0.002
    assert measured["SlowSGD.step"] >= 12 * 0.004
    outermost = sum(measured.values()) - (measured["SlowSGD.step"] + measured["Slowly.backward"]) * by_hand
    assert outermost >= 0.7 * whole


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_an_optimizer_that_fails_is_the_error_that_the_user_sees(profiler: str) -> None:
    with pytest.raises(KeyError, match="in the step"):
        quiet_trainer(profiler=profiler).fit(Slowly(by_hand=True, fails=True), DataLoader(Slow(4), 4))


def test_an_optimizer_outlives_its_profiler() -> None:
    model, profiler = Slowly(), SimpleProfiler()
    trainer = quiet_trainer(profiler=profiler)
    trainer.fit(model, DataLoader(Slow(4), 4))
    trainer.optimizers[0].step()
    assert profiler.totals["[Optimizer]SlowSGD.step"][0] == 1


def test_a_step_that_calls_its_parent_s_is_one_step() -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])  # from now on torch calls the hooks of its `step` as well
    profiler = SimpleProfiler()
    quiet_trainer(profiler=profiler).fit(Slowly(), DataLoader(Slow(8), 4))
    assert profiler.totals["[Optimizer]SlowSGD.step"][0] == 2


def test_predict_and_loader_methods_are_actions_too() -> None:
    profiler = SimpleProfiler()
    model = BoringModel()
    model.predict_dataloader = lambda: DataLoader(Slow(8), 4)  # type: ignore[method-assign]
    quiet_trainer(profiler=profiler).predict(model)
    assert profiler.totals["[LightningModule]BoringModel.predict_dataloader_next"][1] >= 8 * 0.002
    assert "[LightningModule]BoringModel.predict_dataloader" in profiler.totals


class Duck:
    """An optimizer that is none of torch's, as other libraries have."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": 0.1}]
        self.state: dict[Any, Any] = {}
        self.steps = 0

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        self.steps += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_optimizer_of_another_library_needs_no_hooks_of_torch(by_hand: bool) -> None:
    model = Slowly(by_hand)
    duck = Duck(model.parameters())
    model.configure_optimizers = lambda: duck  # type: ignore[method-assign,assignment,return-value]
    quiet_trainer(profiler="simple").fit(model, DataLoader(Slow(8), 4))
    assert duck.steps == 2
