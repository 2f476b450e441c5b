"""Metrics, hyper-parameters and the graph as TensorBoard event files.

Owns: one event writer in the run's directory. Does not own: the file format (`torch.utils.tensorboard`).
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import rank_zero_only, rank_zero_warn
from ..errors import require
from ..transfer import move_data_to_device
from .csv_logs import write_yaml
from .logger import HPARAMS_FILE, VersionedLogger, flat, plain, rank_zero_experiment, require_later, scalars


class TensorBoardLogger(VersionedLogger):
    """Write event files to `save_dir/name/version_N[/sub_dir]`; look with `tensorboard --logdir save_dir`.

    Args:
        save_dir: Directory above the experiments.
        name: Experiment.
        version: Number or name of the run; None: the next free number.
        log_graph: Write the graph of the model, which then needs `example_input_array`.
        default_hp_metric: Write `hp_metric` = -1 with the hyper-parameters when they come without metrics, because
            TensorBoard lists a run under HPARAMS only if it has one.
        prefix: Put before every metric's name.
        sub_dir: Directory below the version, for the event files only.
        **kwargs: For `torch.utils.tensorboard.SummaryWriter`; `flush_secs` is 10 unless given.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    NAME_HPARAMS_FILE = HPARAMS_FILE

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        require_later("tensorboard", "tensorboard", "`TensorBoardLogger`")
        super().__init__(save_dir, name, version, prefix)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = os.fspath(sub_dir) if sub_dir is not None else None
        self._writer_options = {"flush_secs": 10, **kwargs}
        self._writer: Any = None
        self.hparams: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}

    @property
    def sub_dir(self) -> str | None:
        """Directory below the version, or None."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """Directory of this run's event files."""
        return os.path.join(super().log_dir, self._sub_dir) if self._sub_dir else super().log_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `SummaryWriter`: `logger.experiment.add_image("input", image, step)`."""
        if self._writer is None:
            self._writer = self._open()
        return self._writer

    def _open(self) -> Any:
        summary_writer = require("torch.utils.tensorboard", "tensorboard", "`TensorBoardLogger`").SummaryWriter
        return summary_writer(log_dir=self.claim(), **self._writer_options)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of one step as one event."""
        proto = require("tensorboard.compat.proto.summary_pb2", "tensorboard", "`TensorBoardLogger`")
        values = scalars(metrics, self._prefix, self.LOGGER_JOIN_CHAR)
        summary = proto.Summary(
            value=[proto.Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        )
        self.experiment.file_writer.add_summary(summary, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        metrics: Mapping[str, float] | float | None = None,
        step: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Write the hyper-parameters for the HPARAMS page and to `hparams.yaml`.

        Args:
            params: Hyper-parameters; values other than numbers, strings and booleans are written as text.
            metrics: Metrics to compare runs by; a number is named `hp_metric`.
            step: Step of the metrics; None: 0.
            *args: Not used.
            **kwargs: Not used.
        """
        self.hparams.update(plain(params or {}))
        writer = self.experiment
        write_yaml(os.path.join(self.log_dir, HPARAMS_FILE), self.hparams)
        if metrics is None:
            metrics = {"hp_metric": -1.0} if self._default_hp_metric else {}
        named = dict(metrics) if isinstance(metrics, Mapping) else {"hp_metric": metrics}
        if not named:
            return
        self.log_metrics(named, step or 0)
        simple = {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in flat(params).items()}
        summaries = require("torch.utils.tensorboard.summary", "tensorboard", "`TensorBoardLogger`")
        for summary in summaries.hparams(simple, named):
            writer.file_writer.add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Write the graph of the model, traced with `input_array` or the model's `example_input_array`."""
        if not self._log_graph:
            return
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if example is None:
            rank_zero_warn(
                "`TensorBoardLogger(log_graph=True)` needs an example: set `self.example_input_array` in the module, "
                "or leave log_graph out."
            )
            return
        parameter = next(model.parameters(), torch.empty(0))
        modes = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad():  # the writer puts the model into eval mode, and back by a single flag
                self.experiment.add_graph(model, move_data_to_device(example, parameter.device))
        except Exception as error:  # tracing runs the user's forward; a picture must not stop the training
            rank_zero_warn(f"The graph of `{type(model).__name__}` could not be traced ({error}); it is not logged.")
        finally:
            for module, mode in modes.items():
                module.training = mode

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered, so that TensorBoard shows it."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError:  # a full disk has ended the writer's thread: go on in another file, as soon as there is room
            self._writer = self._open()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and close the file; a later metric opens another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.flush()
            writer.close()
