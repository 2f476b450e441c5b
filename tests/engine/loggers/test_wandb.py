"""Weights & Biases without a network, read back from its own offline file."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine.errors import MisconfigurationException, MissingExtraError
from engine.loggers import WandbLogger

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.finish()


def read(directory: Path) -> list[Any]:
    """Return the records of the one offline run below `directory`, as wandb's own protocol decodes them.

    wandb's reader of the file is no longer part of its Python package. The file is a header of 7 bytes, then blocks of
    32 KiB holding pieces: checksum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last), data.
    """
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = directory.rglob("*.wandb")
    data, at, found, pieces = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little of the block is left for another piece
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(records.Record.FromString(pieces))
            pieces = b""
    return found


def test_metrics_and_config_in_the_offline_file(tmp_path: Path) -> None:
    logger = WandbLogger(project="demo", name="blue", save_dir=tmp_path / "out", prefix="run", id="abc123")
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 3}})
    for step in (0, 50):
        logger.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0}, step)
    logger.log_table("table", columns=["a"], data=[[1]], step=50)
    logger.finalize("success")
    assert (logger.name, logger.version, logger.state_dict()) == ("demo", "abc123", {"id": "abc123"})
    wandb.finish()

    records = read(tmp_path / "out")
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    points = [(row["trainer/global_step"], row["run-loss"]) for row in rows if "run-loss" in row]
    assert points == [(0, 1.0), (50, pytest.approx(1 / 51))]
    assert any("table/nrows" in row for row in rows)
    config = {u.key: json.loads(u.value_json) for r in records if r.HasField("config") for u in r.config.update}
    assert config["lr"] == 0.1
    assert config["net"] == {"width": 3}
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.display_name) == ("demo", "blue")


def test_texts_are_sent_as_the_tables_are_also_by_a_subclass() -> None:
    class Mine(WandbLogger):
        def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
            sent.append((key, args, kwargs))

    sent: list[Any] = []
    Mine().log_text("words", ["word"], data=[["yes"]], step=3)
    assert sent == [("words", (["word"],), {"data": [["yes"]], "step": 3})]


def test_a_resumed_fit_takes_its_id_unless_another_is_given() -> None:
    fresh, chosen = WandbLogger(), WandbLogger(version="mine")
    for logger in (fresh, chosen):
        logger.load_state_dict({"id": "old"})
    assert (fresh.version, chosen.version) == ("old", "mine")


def test_checkpoints_become_model_artifacts(tmp_path: Path) -> None:
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    best.write_text("weights")
    last.write_text("more")
    callback: Any = SimpleNamespace(
        best_model_path=str(best),
        best_model_score=0.5,
        last_model_path=str(last),
        monitor="loss",
        save_top_k=1,
    )
    taken: list[tuple[str, list[str], dict[str, Any]]] = []
    run = SimpleNamespace(
        id="abc",
        define_metric=lambda *a, **k: None,
        log_artifact=lambda artifact, aliases: taken.append((artifact.name, aliases, dict(artifact.metadata))),
    )
    logger = WandbLogger(experiment=run, log_model=True)
    logger.after_save_checkpoint(callback)
    assert taken == []
    logger.finalize("failed")
    assert taken == []
    logger.finalize("success")
    assert sorted((name, aliases, about["original_filename"]) for name, aliases, about in taken) == [
        ("model-abc", ["latest"], "last.ckpt"),
        ("model-abc", ["latest", "best"], "best.ckpt"),
    ]
    each = WandbLogger(experiment=run, log_model="all", checkpoint_name="net")
    each.after_save_checkpoint(callback)
    assert len(taken) == 4


def test_arguments_that_clash_and_lists_that_do_not_fit() -> None:
    with pytest.raises(MisconfigurationException, match="offline"):
        WandbLogger(offline=True, log_model=True)
    with pytest.raises(TypeError, match="give a list"):
        WandbLogger(experiment=object()).log_image("x", "not a list")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one for each item"):
        WandbLogger(experiment=object()).log_image("x", [1, 2], caption=["one"])


def test_missing_wandb_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"\[wandb\]"):
        WandbLogger()
