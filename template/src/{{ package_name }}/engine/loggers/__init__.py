"""Loggers, loaded when first used: naming one imports its module, making one imports its library."""

from __future__ import annotations

from ..lazy import lazily

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

__all__ = list(_MODULES)


__getattr__, __dir__ = lazily(__name__, _MODULES)
