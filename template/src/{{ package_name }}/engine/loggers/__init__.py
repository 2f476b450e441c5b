"""Loggers, loaded when first used: naming one imports its module, making one imports its library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .comet import CometLogger
    from .csv_logs import CSVLogger
    from .event_log import EventLog
    from .logger import DummyLogger, Logger
    from .mlflow import MLFlowLogger
    from .tensorboard import TensorBoardLogger
    from .wandb import WandbLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "DummyLogger",
    "EventLog",
    "Logger",
    "MLFlowLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

_MODULES = {
    "CSVLogger": "csv_logs",
    "CometLogger": "comet",
    "DummyLogger": "logger",
    "EventLog": "event_log",
    "Logger": "logger",
    "MLFlowLogger": "mlflow",
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
}


__getattr__, __dir__ = lazily(__name__, _MODULES)
