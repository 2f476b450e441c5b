"""Names of checkpoint files: templates, links."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.callbacks import _checkpoint_names as names
from engine.errors import MisconfigurationException


@pytest.mark.parametrize(
    ("template", "insert", "expected"),
    [
        ("{epoch}-{step}", True, "epoch=3-step=21"),
        ("{epoch:02d}", True, "epoch=03"),
        ("m-{epoch:02d}-{val/loss:.2f}", False, "m-03-0.12"),
        ("{val/loss:.3f}", True, "val/loss=0.123"),
        ("{x/../../y}-{../a}-{b/..}", True, "x/_/_/y=0-_/a=0-b/_=0"),
        ("{/etc/a}", True, "_/etc/a=0"),
        ("{nope}-{nope:.1f}", True, "nope=0-nope=0.0"),
        ("epoch_{epoch}", False, "epoch_3"),
        ("best", True, "best"),
        ("a\0b-{val\0loss}", True, "a_b-val_loss=0"),
    ],
)
def test_templates_are_filled(template: str, insert: bool, expected: str) -> None:
    metrics = {"epoch": 3, "step": 21, "val/loss": torch.tensor(0.1234)}
    assert names.fill(template, metrics, insert) == expected


def test_a_format_that_does_not_fit_is_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"\{val_loss:d\}.*\.3f"):
        names.fill("{val_loss:d}", {"val_loss": 0.5})


@pytest.mark.parametrize("symbolic", [True, False])
def test_a_link_replaces_what_was_there(tmp_path: Path, symbolic: bool) -> None:
    (tmp_path / "a.ckpt").write_text("new")
    (tmp_path / "last.ckpt").write_text("old")
    assert names.link(str(tmp_path / "a.ckpt"), str(tmp_path / "last.ckpt"), symbolic)
    assert (tmp_path / "last.ckpt").read_text() == "new"
    assert (tmp_path / "last.ckpt").is_symlink() == symbolic
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_that_is_not_possible_says_so_and_leaves_the_file(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("old")
    assert not names.link(str(tmp_path / "not there.ckpt"), str(tmp_path / "last.ckpt"), symbolic=False)
    assert (tmp_path / "last.ckpt").read_text() == "old"


def test_inside_means_below_the_folder(tmp_path: Path) -> None:
    assert names.is_inside(str(tmp_path / "a" / "b.ckpt"), str(tmp_path))
    assert not names.is_inside(str(tmp_path / "b.ckpt"), str(tmp_path / "a"))
