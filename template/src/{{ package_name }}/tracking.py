"""Where runs are tracked: `configs/tracking/NAME.yaml`, where `tracking: NAME` in the configuration says which.

The files hold environment variables of MLflow, so that every tool that uses MLflow can be told the same. What the
environment sets already wins. Owns: reading them. Does not own: the variables' meaning, and what is logged.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from .config import Config
from .engine.errors import did_you_mean
from .sources import ProjectError

_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")


def tracking_uri(config: Config) -> str:
    """Put the variables of the chosen file into the environment, and return the tracker's address.

    Raises:
        ProjectError: There is no such file, or something in it is no variable of MLflow.
    """
    for name, value in _variables(config).items():
        if value is not None:
            os.environ.setdefault(name, value)
    return os.environ.get("MLFLOW_TRACKING_URI") or config.local_tracking_uri


def _variables(config: Config) -> dict[str, str | None]:
    folder = config.root / "configs" / "tracking"
    path = folder / f"{config.tracking}.yaml"
    if not path.is_file():
        if config.tracking == "local":
            return {}
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ProjectError(
            f"There is no configs/tracking/{config.tracking}.yaml.{did_you_mean(config.tracking, known)} There are: "
            f"{', '.join(known)}."
        )
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ProjectError(f"{path} is no YAML: {error}") from None
    for name, value in values.items() if isinstance(values, dict) else [(values, None)]:
        if not str(name).startswith("MLFLOW_") or not isinstance(value, str | None):
            raise ProjectError(f'`{name}` in {path} should be a variable of MLflow and its text: MLFLOW_NAME: "value".')
        if name in _SECRETS:
            raise ProjectError(f"{name} is a secret and does not belong into {path}. Set it in the environment.")
    return dict(values)
