"""Statistics of the device in the loggers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from engine.callbacks import DeviceStatsMonitor
from engine.errors import MisconfigurationException, MissingExtraError
from engine.loggers import CSVLogger

from tests.engine.toys import BoringModel, loader, quiet_trainer


def test_cpu_statistics_when_loggers_are_due(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(callbacks=[DeviceStatsMonitor()], logger=logger, log_every_n_steps=5)
    trainer.fit(BoringModel(), loader(48), loader())
    trainer.test(BoringModel(), loader(), verbose=False)
    frame = pd.read_csv(logger.metrics_file)
    column = frame.set_index("step")["DeviceStatsMonitor.on_train_batch_end/cpu_vm_percent"].dropna()
    assert column.index.tolist() == [0, 4, 9, 11]
    assert column.between(1, 100).all()
    for hook in ("on_train_batch_start", "on_validation_batch_end", "on_test_batch_end"):
        assert frame[f"DeviceStatsMonitor.{hook}/cpu_percent"].notna().any()


def test_none_on_a_cpu_when_turned_off(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callbacks = [DeviceStatsMonitor(cpu_stats=False)]
    quiet_trainer(callbacks=callbacks, logger=logger).fit(BoringModel(), loader())
    frame = pd.read_csv(logger.metrics_file)
    assert not [name for name in frame.columns if "DeviceStats" in name]
    assert len(frame) == 2, "no empty rows"


def test_with_parity_every_due_batch_of_a_validation_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    settings: dict[str, Any] = {"logger": logger, "log_every_n_steps": 1, "parity": "lightning"}
    quiet_trainer(callbacks=[DeviceStatsMonitor()], **settings).fit(BoringModel(), loader(), loader())
    column = pd.read_csv(logger.metrics_file).set_index("step")[
        "DeviceStatsMonitor.on_validation_batch_start/cpu_percent"
    ]
    assert column.dropna().index.tolist() == [0, 0, 2, 2, 2]


def test_without_a_logger_it_says_so() -> None:
    trainer = quiet_trainer(callbacks=[DeviceStatsMonitor()])
    with pytest.raises(MisconfigurationException, match="CSVLogger"):
        trainer.fit(BoringModel(), loader())


def test_missing_psutil_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    trainer = quiet_trainer(callbacks=[DeviceStatsMonitor()], logger=CSVLogger(tmp_path))
    with pytest.raises(MissingExtraError, match=r"\[psutil\]"):
        trainer.fit(BoringModel(), loader())
