"""Tracking with Comet.

Owns: one Comet experiment and what is sent to it. Does not own: the login (COMET_API_KEY or `comet login`), the sending
(Comet's own threads).
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ..distributed import rank_zero_only
from ..errors import EngineError, require
from .logger import Logger, flat, rank_zero_experiment, require_later, scalars


class CometLogger(Logger):
    """Log to Comet, online or into an archive that `comet upload` takes later.

    Args:
        api_key: Key; None: COMET_API_KEY or Comet's own settings.
        workspace: Workspace; None: the default one.
        project: Project; None: COMET_PROJECT_NAME, else Comet's "general".
        experiment_key: Experiment to continue.
        mode: "get_or_create", "get" (must exist) or "create".
        online: False: write an archive to `offline_directory`; it is complete when the process ends or after
            `logger.experiment.end()`.
        prefix: Put before every metric's name, with "_" between.
        **kwargs: For `comet_ml.ExperimentConfig`: name, tags, offline_directory, ...

    Raises:
        MissingExtraError: comet_ml is not installed.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        require_later("comet_ml", "comet", "`CometLogger`")
        self._start: dict[str, Any] = {
            "api_key": api_key,
            "workspace": workspace,
            "project": project,
            "experiment_key": experiment_key,
            "mode": mode,
            "online": online,
        }
        self._config = kwargs
        self._prefix = prefix
        self._experiment: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None, "_start": {**self._start, "experiment_key": self.version}}

    @property
    def name(self) -> str | None:
        """The project."""
        project: str | None = self._start["project"] if self._experiment is None else self._experiment.project_name
        return project

    @property
    def version(self) -> str | None:
        """The experiment's key, or None before it is started."""
        key: str | None = self._start["experiment_key"] if self._experiment is None else self._experiment.get_key()
        return key

    @property
    def save_dir(self) -> str | None:
        """Directory of the archive, when one is written."""
        return self._config.get("offline_directory")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The Comet experiment, started when first used.

        Raises:
            EngineError: Comet did not give one (wrong key, or `mode="get"` and no such experiment).
        """
        if self._experiment is None:
            comet = require("comet_ml", "comet", "`CometLogger`")
            self._experiment = comet.start(**self._start, experiment_config=comet.ExperimentConfig(**self._config))
            if self._experiment is None:
                raise EngineError(
                    f"Comet gave no experiment for {self._start['experiment_key'] or 'a new key'}. Check COMET_API_KEY "
                    "and the key, or use `CometLogger(online=False)`."
                )
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Send the hyper-parameters, flattened with "/"."""
        self.experiment.log_parameters(flat(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of one step; "epoch" becomes Comet's own epoch."""
        values = scalars(metrics)
        epoch = values.pop("epoch", None)
        self.experiment.log_metrics(
            values, step=step, epoch=None if epoch is None else int(epoch), prefix=self._prefix or None
        )

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Send the model's text as its graph."""
        self.experiment.set_model_graph(str(model))

    @rank_zero_only
    def log_artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """Upload a file as an asset of the experiment."""
        name = os.path.basename(path)
        self.experiment.log_asset(os.fspath(path), file_name=f"{folder}/{name}" if folder else name)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is buffered; the experiment stays open for `test`, and ends with the process."""
        if self._experiment is not None:
            self._experiment.log_other("status", status)
            self._experiment.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the experiment's key."""
        return {"experiment_key": self.version} if self.version else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the experiment that wrote the checkpoint, unless another was asked for or begun."""
        if self._experiment is None:
            self._start["experiment_key"] = self._start["experiment_key"] or state_dict.get("experiment_key")
