"""The picture of a run's metrics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine import curves as module
from engine.curves import write_curves
from engine.history import History

pytest.importorskip("matplotlib")

ROWS = [
    {"step": step, "epoch": step // 5, "train_loss_step": 1 / (step + 1), **extra}
    for step in range(20)
    for extra in ([{}, {"val_loss": 1.0, "train_loss_epoch": 1.0, "lr-SGD": 0.1}] if step % 5 == 4 else [{}])
]


def test_an_svg_with_a_panel_for_each_quantity(tmp_path: Path) -> None:
    path = write_curves(History(ROWS), tmp_path / "run" / "curves.svg")
    assert path == tmp_path / "run" / "curves.svg"
    text = path.read_text()
    for words in (">loss<", ">train_loss_epoch<", ">val_loss<", ">lr-SGD<"):
        assert words in text
    assert text.count('id="axes_') == 2, "no empty panels"


def test_a_loss_that_falls_far_is_drawn_by_its_logarithm(tmp_path: Path) -> None:
    def ticks(values: list[float], name: str) -> str:
        path = write_curves([{"step": n, name: value} for n, value in enumerate(values)], tmp_path / "c.svg")
        assert path is not None
        return path.read_text()

    assert "\\mathdefault{10^{-2}}" in ticks([2.0, 0.1, 0.01], "train_loss")
    for values, name in (([2.0, 0.5, 0.4], "train_loss"), ([2.0, 0.1, 0.0], "train_loss"), ([0.01, 0.9], "accuracy")):
        assert "mathdefault{10^" not in ticks(values, name)


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    first, second = (write_curves(ROWS, tmp_path / name) for name in ("a.svg", "b.svg"))
    assert first is not None
    assert second is not None
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize("x", ["step", "epoch"])
def test_png_over_any_axis(tmp_path: Path, x: str) -> None:
    path = write_curves(ROWS, tmp_path / "curves.png", x=x)
    assert path is not None
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert write_curves([], tmp_path / "curves.svg") is None
    assert write_curves([{"step": 0, "epoch": 0, "a": float("nan")}], tmp_path / "curves.svg") is None
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_imported_only_to_draw() -> None:
    root = str(Path(module.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {root!r}); import engine.curves; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
