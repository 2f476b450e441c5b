"""Progress bars: which one, when a line is drawn, what it shows, and that it breaks nothing."""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import pty
import re
import struct
import subprocess
import sys
import termios
import types
from pathlib import Path
from typing import Any

import pytest
from engine.callbacks import ProgressBar
from engine.callbacks.progress import (
    LineProgressBar,
    PlainProgressBar,
    ProgressBarBase,
    RichProgressBar,
    RichProgressBarTheme,
    TQDMProgressBar,
    progress_bar,
    select_progress_bar,
)
from engine.callbacks.progress.rich_progress import fit_line
from engine.loggers import CSVLogger

from tests.conftest import PACKAGE
from tests.engine.toys import BoringModel, loader, quiet_trainer

View = progress_bar.View


class OnTheBar(BoringModel):
    """Shows its losses on the bar."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    test_step = validation_step


class Recorder(LineProgressBar):
    """Draws at every batch, into a list."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.views: list[Any] = []
        self.kept = 0
        self.closed = 0
        self.reads = 0

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        self.reads += 1
        return super().get_metrics(trainer, pl_module)

    def _draw(self, view: Any) -> None:
        self.views.append(view)

    def _keep(self) -> None:
        self.kept += 1

    def _close(self) -> None:
        self.closed += 1


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two drawings."""
    monkeypatch.setattr(LineProgressBar, "_pause_s", lambda self, drawing_s: 0.0)


def fit(*bars: Any, epochs: int = 2, model: Any = None, **options: Any) -> Any:
    trainer = quiet_trainer(max_epochs=epochs, callbacks=list(bars), enable_progress_bar=True, **options)
    trainer.fit(model or OnTheBar(), loader(), loader())
    return trainer


# ---------------------------------------------------------------- which one


def terminal(monkeypatch: pytest.MonkeyPatch, is_one: bool, term: str = "xterm") -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_one, raising=False)
    monkeypatch.setenv("TERM", term)


def test_lines_for_a_file_and_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, False)
    assert type(select_progress_bar()) is PlainProgressBar
    terminal(monkeypatch, True, "dumb")
    assert type(select_progress_bar()) is PlainProgressBar


def test_rich_for_a_terminal_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal(monkeypatch, True)
    assert type(select_progress_bar()) is RichProgressBar
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert type(select_progress_bar()) is PlainProgressBar


def test_tqdm_for_a_notebook_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert type(select_progress_bar()) is TQDMProgressBar
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ipywidgets" else name)
    assert type(select_progress_bar()) is PlainProgressBar


def test_rich_leaves_no_empty_box_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    jupyter = pytest.importorskip("rich.jupyter")

    class Output:  # of ipywidgets
        __enter__ = __exit__ = clear_output = lambda self, *args, **kwargs: None

    for module, name in (("IPython.display", "display"), ("ipywidgets", "Output")):
        fake = types.ModuleType(module)
        setattr(fake, name, {"display": lambda widget: None, "Output": Output}[name])
        monkeypatch.setitem(sys.modules, module, fake)
    boxes: list[str] = []
    monkeypatch.setattr(jupyter, "display", lambda segments, text: boxes.append(text))
    fit(RichProgressBar(console_kwargs={"force_jupyter": True}))
    assert "Epoch 1/1" in boxes[-1]
    assert all(map(str.strip, boxes))


def test_rich_stays_quiet_when_asked_to() -> None:
    pytest.importorskip("rich")
    shown = io.StringIO()
    fit(RichProgressBar(console_kwargs={"file": shown, "quiet": True, "force_terminal": True}))
    assert shown.getvalue() == ""


# ---------------------------------------------------------------- what a line shows, and when


def test_one_line_goes_through_all_phases(always: None) -> None:
    bar = Recorder()
    trainer = fit(bar, num_sanity_val_steps=2)
    seen = list(dict.fromkeys(view.description for view in bar.views))
    assert seen == ["Sanity check", "Epoch 0/1", "Validation", "Epoch 1/1"]
    assert {view.batches for view in bar.views if view.description == "Sanity check"} == {"1/2", "2/2"}
    epochs = [view.batches for view in bar.views if view.description == "Epoch 1/1"]
    assert epochs == ["1/3", "2/3", "3/3", "3/3"], "validation in between took nothing away"
    assert bar.closed
    bar.views.clear()
    trainer.test(OnTheBar(), loader())
    trainer.predict(OnTheBar(), loader())
    trainer.validate(OnTheBar(), loader())
    assert [(view.description, view.batches) for view in bar.views] == [
        (phase, batches)
        for phase in ("Testing", "Predicting", "Validation")
        for batches in ("1/3", "2/3", "3/3", "3/3")
    ]


def test_metrics_at_the_end_are_those_of_the_epoch(always: None) -> None:
    bar = Recorder()
    trainer = fit(bar)
    last = bar.views[-1].metrics
    assert set(last) == {"train_loss_step", "train_loss_epoch", "val_loss"}
    assert last["train_loss_epoch"] == pytest.approx(float(trainer.callback_metrics["train_loss"]))
    assert last["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))


def test_several_loaders_are_told_apart(always: None) -> None:
    bar = Recorder()
    trainer = quiet_trainer(callbacks=[bar], enable_progress_bar=True)
    trainer.test(OnTheBar(), [loader(), loader(8)])
    assert [(view.description, view.batches) for view in bar.views] == [
        *[("Testing", f"{i}/3") for i in (1, 2, 3)],
        *[("Testing · loader 1", f"{i}/2") for i in (1, 2)],
        ("Testing", "5/5"),
    ]


def test_a_line_for_every_epoch_when_asked_to_leave_them(always: None) -> None:
    leaving, single = Recorder(leave=True), Recorder()
    fit(leaving, epochs=4)
    fit(single, epochs=4)
    assert (leaving.kept, single.kept) == (3, 0)


def test_unknown_lengths_show_what_is_known(always: None) -> None:
    bar = Recorder()
    trainer = quiet_trainer(callbacks=[bar], enable_progress_bar=True, max_epochs=-1, max_steps=3)
    trainer.fit(OnTheBar(), iter(list(loader(40))))
    assert bar.views[-1].description == "Epoch 0"
    assert "/" not in bar.views[1].batches
    assert "<" not in bar.views[1].times


def test_drawing_and_reading_go_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])

    class Slow(OnTheBar):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            now[0] += 0.01
            return super().training_step(batch, batch_idx)

    bar = Recorder()
    trainer = quiet_trainer(callbacks=[bar], enable_progress_bar=True, limit_train_batches=1.0)
    trainer.fit(Slow(), loader(4000))  # 1000 batches in ten seconds
    assert 90 <= len(bar.views) <= 103
    assert bar.reads == len(bar.views) - 1, "metrics are read for a drawing only, and not for the first"


def test_a_slow_terminal_gets_fewer_lines_but_never_none() -> None:
    bar = Recorder()
    assert bar._pause_s(0.0) == pytest.approx(0.1)
    assert bar._pause_s(0.02) == pytest.approx(0.4)
    assert bar._pause_s(30.0) == pytest.approx(1.0)


def test_between_two_drawings_a_batch_costs_one_clock_read(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Recorder()
    bar._due = float("inf")
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(f"{event} {getattr(arg, '__name__', frame.f_code.co_name)}"))
    try:
        bar.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)
    assert [call for call in calls if call.startswith(("call", "c_call"))] == [
        "call on_train_batch_end", "c_call monotonic", "c_call setprofile",
    ]  # fmt: skip


def test_what_a_view_says() -> None:
    view = View("Epoch 0", 30, 120, 15.0, {"loss": 0.123456, "n": 3, "name": "x", "bad": float("nan"), "tiny": 1e-9})
    assert (view.batches, view.pace, view.times) == ("30/120", "2.0 it/s", "0:15<0:45")
    assert view.values == "loss 0.1235 n 3 name x bad nan tiny 1e-09"
    assert View("", 1, 2, 15.0, {}).pace == "15.0 s/it"
    assert View("", 0, 2, 0.0, {}).pace == ""


# ---------------------------------------------------------------- turning it off


def test_off_by_refresh_rate_by_disable_and_on_other_ranks(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    off, disabled, other = Recorder(refresh_rate=0), Recorder(), Recorder()
    disabled.disable()
    fit(off)
    fit(disabled)
    assert (off.is_disabled, disabled.is_disabled) == (True, True)
    trainer = types.SimpleNamespace(is_global_zero=False)
    other.setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert other.is_disabled
    assert off.views == disabled.views == other.views == []
    disabled.enable()
    assert disabled.is_enabled


# ---------------------------------------------------------------- one's own


def test_a_bar_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    class Percent(ProgressBar):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            print(f"{100 * (batch_idx + 1) / self.total_train_batches:.0f} %")

    assert ProgressBarBase is ProgressBar
    trainer = fit(Percent(), epochs=1)
    assert capsys.readouterr().out.split() == ["33", "%", "67", "%", "100", "%"]
    assert isinstance(trainer.progress_bar_callback, Percent)
    with pytest.raises(TypeError, match="none has begun"):
        _ = Percent().trainer


def test_with_parity_the_version_is_among_the_metrics(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Bar(ProgressBar):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(self.get_metrics(trainer, pl_module).get("v_num"))

    for version, parity in ((3, "lightning"), ("abcdefg", "lightning"), (3, None)):
        options: dict[str, Any] = {"enable_progress_bar": True, "logger": CSVLogger(tmp_path, version=version)}
        quiet_trainer(callbacks=[Bar()], max_steps=1, parity=parity, **options).fit(BoringModel(), loader())
    assert seen == [3, "defg", None]


def test_get_metrics_decides_what_is_shown(always: None) -> None:
    class Mine(Recorder):
        def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
            return {**super().get_metrics(trainer, pl_module), "mine": "yes"}

    bar = Mine()
    fit(bar)
    assert bar.views[-1].metrics["mine"] == "yes"


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(("epochs", "least", "most"), [(1, 1, 1), (10, 10, 12), (95, 9, 12)])
def test_lines_are_few(capsys: pytest.CaptureFixture[str], epochs: int, least: int, most: int) -> None:
    fit(PlainProgressBar(), epochs=epochs)
    lines = capsys.readouterr().out.splitlines()
    assert least <= len(lines) <= most
    assert re.fullmatch(
        rf"Epoch {epochs - 1}/{epochs - 1}: 3/3 batches, [\d.]+ s, [\d.]+ it/s, train_loss_step \S+ .*val_loss \S+.*",
        lines[-1],
    )


def test_lines_in_a_long_epoch_and_in_a_long_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])

    class Slow(OnTheBar):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            now[0] += 200.0  # ten minutes for an epoch
            return super().training_step(batch, batch_idx)

    fit(PlainProgressBar(), model=Slow(), epochs=10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 22
    assert lines[0].startswith("Epoch 0/9: 1/3 batches, 3:20"), "a sign of life in the first epoch"


def test_short_evaluation_prints_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(callbacks=[PlainProgressBar()], enable_progress_bar=True).test(OnTheBar(), loader(), verbose=False)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- rich


def rich_bar(width: int, **options: Any) -> tuple[Any, io.StringIO]:
    pytest.importorskip("rich")
    out = io.StringIO()
    return RichProgressBar(console_kwargs={"file": out, "force_terminal": True, "width": width}, **options), out


def drawn(text: str) -> list[str]:
    """The lines that were on the screen, one after another."""
    bare = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", bare) if line.strip()]


@pytest.mark.parametrize("width", [30, 40, 80, 160])
def test_rich_never_wraps(always: None, width: int) -> None:
    class Many(OnTheBar):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for i in range(12):
                self.log(f"metric_{i}", float(i), prog_bar=True)
            return super().training_step(batch, batch_idx)

    bar, out = rich_bar(width)
    fit(bar, model=Many())
    lines = drawn(out.getvalue())
    assert lines
    assert max(map(len, lines)) <= width
    assert all(line.startswith(("Epoch", "Sanity", "Validation")) for line in lines)


def test_rich_gives_the_metrics_room() -> None:
    view = View("Epoch 0/9", 5, 100, 1.0, {"train_loss": 0.5, "val_loss": 0.25})
    wide, fields = fit_line(view, 200)
    assert (wide, fields["pace"], fields["times"]) == (40, "5.0 it/s", "0:01<0:19")
    for width in range(40, 200, 7):
        bar_width, fields = fit_line(view, width)
        used = bar_width + 5 + len(view.description) + sum(map(len, fields.values()))
        assert used <= width or (bar_width == 10 and not fields["pace"])


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_many_metrics_are_cut_before_the_bar_is_shorter_than_ten(width: int) -> None:
    view = View("Epoch 0/9", 50, 100, 2.0, {f"val_metric_{i}": 0.5 for i in range(12)})
    bar_width, fields = fit_line(view, width)
    rest = width - bar_width - 5 - len(view.description) - sum(len(fields[name]) for name in ("count", "times", "pace"))
    assert (bar_width, fields["pace"]) == (10, "")
    assert fields["times"] == ("" if width == 60 else "0:02<0:02")
    assert rest >= 20  # for the first of the metrics


def test_rich_theme_columns_and_task(always: None) -> None:
    class Short(RichProgressBar):
        def configure_columns(self, trainer: Any) -> list[Any]:
            return super().configure_columns(trainer)[:1]

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append((self.train_progress_bar.completed, self.val_progress_bar.total))

    seen: list[Any] = []
    _, out = rich_bar(80)
    theme = RichProgressBarTheme(description="red")
    console = {"file": out, "force_terminal": True, "width": 80, "color_system": "standard"}
    fit(Short(theme=theme, console_kwargs=console))
    assert seen[0] == (1, 3)
    assert "\x1b[31mEpoch" in out.getvalue()
    assert "val_loss" not in out.getvalue()


def test_an_exception_gives_the_terminal_back(always: None) -> None:
    class Fails(OnTheBar):
        def on_train_batch_end(self, *args: Any) -> None:
            assert sys.stdout is not before, "while the bar stands, prints go through it"
            raise ValueError("mine")

    before = sys.stdout
    bar, out = rich_bar(80)
    with pytest.raises(ValueError, match="mine"):
        fit(bar, model=Fails())
    assert sys.stdout is before
    assert out.getvalue().endswith(("\x1b[?25h", "\n"))


def test_bars_can_be_copied_after_use(always: None) -> None:
    bar, _ = rich_bar(80)
    bar._console_kwargs = {}
    assert pickle.loads(pickle.dumps(bar)).refresh_rate == 100


# ---------------------------------------------------------------- tqdm


def test_tqdm_makes_its_bar_by_a_method_that_may_be_overridden(
    always: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")

    class Mine(TQDMProgressBar):
        def init_train_tqdm(self) -> Any:
            bar = super().init_train_tqdm()
            bar.colour = "green"
            made.append(bar)
            return bar

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append((self.train_progress_bar.n, self.val_progress_bar.total))

    made: list[Any] = []
    seen: list[Any] = []
    fit(Mine(), num_sanity_val_steps=2)
    assert len(made) == 1, "one bar for sanity check, training and validation"
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    text = capsys.readouterr().out
    assert "Epoch 1/1: 100%" in text
    assert "val_loss=" in text
    with pytest.raises(TypeError, match="no bar"):
        _ = TQDMProgressBar().train_progress_bar


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_tqdm_outside_of_fit(always: None, capsys: pytest.CaptureFixture[str], call: str) -> None:
    pytest.importorskip("tqdm")
    trainer = quiet_trainer(callbacks=[TQDMProgressBar()], enable_progress_bar=True)
    getattr(trainer, call)(OnTheBar(), loader())
    assert "100%" in capsys.readouterr().out


# ---------------------------------------------------------------- on a real terminal

SCRIPT = """
import sys, warnings
sys.path[:0] = {path!r}
from engine.callbacks import RichProgressBar, TQDMProgressBar
from engine.callbacks.progress import LineProgressBar
from tests.engine.toys import loader, quiet_trainer
from tests.engine.callbacks.test_progress import OnTheBar
LineProgressBar._pause_s = lambda self, drawing_s: 0.0
class Chatty(OnTheBar):
    def training_step(self, batch, batch_idx):
        print("user print", batch_idx)
        print("warned", batch_idx, file=sys.stderr)
        sys.stdout.writelines(["in", "parts\\n"])
        assert sys.stdout.encoding or {bar!r} == "RichProgressBar"  # what rich puts there has none
        return super().training_step(batch, batch_idx)
quiet_trainer(callbacks=[{bar}()], enable_progress_bar=True).fit(Chatty(), loader(), loader())
print("after")
"""


def on_terminal(code: str, columns: int = 100) -> str:
    """Run code with a pseudo terminal for its output, and return what it wrote."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    done = subprocess.Popen(
        [sys.executable, "-c", code], stdout=writer, stderr=writer, env={**os.environ, "TERM": "xterm"}
    )
    os.close(writer)
    text = b""
    try:
        while data := os.read(reader, 65536):
            text += data
    except OSError:  # Linux says so that the other side is closed
        pass
    os.close(reader)
    assert done.wait() == 0, text.decode()
    return text.decode()


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_prints_of_the_user_stand_on_lines_of_their_own(bar: str) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("tqdm")
    path = [str(PACKAGE), str(Path(__file__).parents[3])]
    lines = drawn(on_terminal(SCRIPT.format(path=path, bar=bar)))
    mine = [line.strip() for line in lines if re.search("user print|warned|inparts|after", line)]
    assert mine == [text for i in range(3) for text in (f"user print {i}", f"warned {i}", "inparts")] + ["after"]
    assert any("Epoch 0/0" in line and "3/3" in line for line in lines)


STREAM = """
import io, sys
sys.path[:0] = {path!r}
from engine.callbacks import TQDMProgressBar
from tests.engine.toys import BoringModel, loader, quiet_trainer
class Asks(BoringModel):
    def training_step(self, batch, batch_idx):
        if batch_idx:
            assert sys.stdout is not sys.__stdout__
            assert isinstance(sys.stdout, io.TextIOBase)
            same = [(f.isatty(), f.fileno(), f.encoding) for f in (sys.stdout, sys.__stdout__)]
            print("asked", same[0] == same[1], file=sys.stdout, flush=True)
        return super().training_step(batch, batch_idx)
from engine.callbacks.progress import LineProgressBar
LineProgressBar._pause_s = lambda self, drawing_s: 0.0
quiet_trainer(callbacks=[TQDMProgressBar()], enable_progress_bar=True).fit(Asks(), loader(), loader())
"""


def test_what_stands_for_stdout_above_a_bar_answers_as_the_terminal_does() -> None:
    pytest.importorskip("tqdm")
    path = [str(PACKAGE), str(Path(__file__).parents[3])]
    lines = drawn(on_terminal(STREAM.format(path=path)))
    assert [line.strip() for line in lines if "asked" in line] == ["asked True"] * 2


MANY = """
import sys
sys.path[:0] = {path!r}
from engine.callbacks import TQDMProgressBar
from tests.engine.toys import loader, quiet_trainer
from tests.engine.callbacks.test_progress import OnTheBar
class Many(OnTheBar):
    def training_step(self, batch, batch_idx):
        self.log_dict({{f"metric_{{i}}": 0.5 for i in range(20)}}, prog_bar=True)
        return super().training_step(batch, batch_idx)
quiet_trainer(callbacks=[TQDMProgressBar()], enable_progress_bar=True).fit(Many(), loader(), loader())
"""


@pytest.mark.parametrize("columns", [60, 120])
def test_tqdm_keeps_a_bar_of_ten_beside_many_metrics(columns: int) -> None:
    pytest.importorskip("tqdm")
    path = [str(PACKAGE), str(Path(__file__).parents[3])]
    last = [line for line in drawn(on_terminal(MANY.format(path=path), columns)) if "3/3" in line][-1]
    assert re.search(r"Epoch 0/0: \S{10}\| 3/3 \[\d\d:\d\d, metric_0=", last), last
    assert len(last) <= columns


def test_trainer_print_goes_above_the_bar(always: None, capsys: pytest.CaptureFixture[str]) -> None:
    class Says(OnTheBar):
        def on_train_epoch_end(self) -> None:
            self.print("hello", "there")

    fit(TQDMProgressBar(), model=Says(), epochs=1)
    assert "hello there\n" in capsys.readouterr().out
