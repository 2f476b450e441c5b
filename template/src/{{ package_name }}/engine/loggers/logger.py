"""What a logger is, and what the loggers share: numbered directories, plain numbers, flat hyper-parameters.

Owns: the interface that the trainer calls. Does not own: when metrics are due (the loops), nor any library.

A logger of your own needs one method; everything else has a default that does nothing:

    class PrintLogger(Logger):
        def log_metrics(self, metrics, step=None):
            print(step, metrics)
"""

# ruff: noqa: B027 (what a logger may do without is an empty method)

from __future__ import annotations

import dataclasses
import importlib.util
import os
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping
from enum import Enum
from functools import wraps
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from ..distributed import rank_zero_only
from ..errors import require
from ..hooks import Callback

HPARAMS_FILE = "hparams.yaml"


class Logger(ABC):
    """Base class of loggers. The trainer calls it on every rank; write on rank 0 only (`@rank_zero_only`)."""

    LOGGER_JOIN_CHAR = "-"

    @property
    def name(self) -> str | None:
        """Name of the experiment; part of the default checkpoint directory."""
        return type(self).__name__.removesuffix("Logger").lower() or None

    @property
    def version(self) -> int | str | None:
        """Name or number of this run within the experiment."""
        return 0

    @property
    def save_dir(self) -> str | None:
        """Directory above all experiments, or None when nothing is kept locally."""
        return None

    @property
    def root_dir(self) -> str | None:
        """Directory above the versions of this experiment, or None."""
        return None

    @property
    def log_dir(self) -> str | None:
        """Directory of this run, or None."""
        return None

    @property
    def group_separator(self) -> str:
        """What separates a group from a name in metric names."""
        return "/"

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take the metrics of one step.

        Args:
            metrics: Name to plain number; "epoch" is among them unless the user logged "step".
            step: The x axis, `trainer.log_step`.
        """

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Take the hyper-parameters, once per call of the trainer, before the first batch."""

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Take the graph of the model, when the logger was asked for it."""

    def log_artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """Take a finished file of the run (a picture, a table); loggers that only write next to it do nothing."""

    def save(self) -> None:
        """Write what is buffered. Called at the end of every epoch and before every checkpoint."""

    def finalize(self, status: str) -> None:
        """End the run; `status` is "success", "failed" or "interrupted". More may be logged afterwards."""
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: Callback) -> None:
        """Run after a checkpoint callback wrote a file."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on in the same record (an id, never a secret)."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; called before anything is logged."""


class DummyExperiment:
    """Answers every call with nothing: the `experiment` of ranks other than 0, and of `fast_dev_run`."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    def __getitem__(self, index: Any) -> Self:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


class DummyLogger(DummyExperiment, Logger):
    """Stands in for the user's logger under `fast_dev_run`: takes every call, writes nothing."""

    def __init__(self) -> None:
        self.experiment = DummyExperiment()

    @property
    def name(self) -> str:
        """The empty string."""
        return ""

    version = name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing."""


class VersionedLogger(Logger):
    """A logger that writes to `save_dir/name/version_N`.

    Args:
        save_dir: Directory above the experiments.
        name: Experiment; empty or None writes to `save_dir/version_N`.
        version: Number (N) or the directory's own name. None: the next number that is free. An existing directory
            is continued, never cleared.
        prefix: Put before every metric's name, with "-" between.
    """

    CLAIM_FILE = HPARAMS_FILE
    """Made exclusively, so that two runs that start at once never take one directory."""

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        self._save_dir = os.path.expanduser(os.fspath(save_dir))
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._picks_version = version is None
        self._claimed = False

    @property
    def name(self) -> str:
        """The experiment."""
        return self._name

    @property
    def save_dir(self) -> str:
        """Directory above the experiments."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """`save_dir/name`."""
        return os.path.join(self._save_dir, self._name)

    @property
    def version(self) -> int | str:
        """Number or name of this run; picked when first read."""
        if self._version is None:
            self._version = next_version(self.root_dir)
        return self._version

    @property
    def log_dir(self) -> str:
        """`save_dir/name/version_N`, or `save_dir/name/<version>` when the version is a string."""
        version = self.version
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")

    def claim(self) -> str:
        """Create the run's directory and return it; two runs that start at once never share one."""
        while not self._claimed:
            os.makedirs(self.log_dir, exist_ok=True)
            try:
                open(os.path.join(self.log_dir, self.CLAIM_FILE), "x").close()
                self._claimed = True
            except FileExistsError:
                self._claimed = not self._picks_version
                self._version = None if self._picks_version else self._version  # the next one
        return self.log_dir


def next_version(root: str) -> int:
    """Return one more than the highest N of the `version_N` directories in `root`."""
    names = os.listdir(root) if os.path.isdir(root) else []
    numbers = [int(name[8:]) for name in names if name.startswith("version_") and name[8:].isdigit()]
    return max(numbers, default=-1) + 1


def append_whole(path: str | os.PathLike[str], text: str) -> None:
    """Append to a file all or nothing: what a full disk cuts short is taken away again before its error goes on."""
    with open(path, "ab", buffering=0) as file:
        before, left = file.tell(), memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def replace_whole(path: str, text: str) -> None:
    """Write a file anew, beside and then renamed: who reads it meanwhile finds all of it, the old or the new."""
    with open(path + ".new", "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.replace(path + ".new", path)


def require_later(module: str, extra: str, purpose: str) -> None:
    """Raise as `require` does where a library is missing, but leave its import, which takes seconds, for later."""
    if importlib.util.find_spec(module) is None:
        require(module, extra, purpose)


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Give rank 0 the real experiment and the other ranks one that takes every call (for `experiment` properties)."""

    @wraps(fn)
    def experiment(self: Any) -> Any:
        return fn(self) if getattr(rank_zero_only, "rank", 0) == 0 else DummyExperiment()

    return experiment


def scalars(metrics: Mapping[str, Any], prefix: str = "", separator: str = "-") -> dict[str, float]:
    """Return the metrics as plain numbers under their full names. A tensor is read here, which is a device sync."""
    start = f"{prefix}{separator}" if prefix else ""
    return {start + key: value if type(value) is float else _number(value) for key, value in metrics.items()}


def _number(value: Any) -> float:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (int, float)) else float(value)


def plain(value: Any) -> Any:
    """Return `value` in the types that YAML and JSON know; what has no such form becomes its text."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Namespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # a numpy scalar
        return plain(value.item())
    if isinstance(value, type) or (callable(value) and not isinstance(value, nn.Module)):
        return getattr(value, "__qualname__", None) or repr(value)
    return str(value)


def flat(params: Mapping[str, Any] | Namespace, separator: str = "/") -> dict[str, Any]:
    """Return the hyper-parameters in one level: `{"net": {"width": 3}}` gives `{"net/width": 3}`."""
    found: dict[str, Any] = {}
    for key, value in plain(params or {}).items():
        if isinstance(value, dict) and value:
            found.update({f"{key}{separator}{inner}": item for inner, item in flat(value, separator).items()})
        else:
            found[key] = value
    return found


class SavedFile(NamedTuple):
    """A checkpoint that a logger has not taken yet."""

    modified: float
    path: str
    score: float | None
    alias: str
    """"best", "latest", "best_k", or "" when the callback does not say."""


def new_checkpoints(callback: Any, seen: dict[str, float]) -> list[SavedFile]:
    """Return the callback's files that are newer than in `seen` (path to time), oldest first, and put them there."""
    named: dict[str, tuple[Any, str]] = {}
    named[getattr(callback, "last_model_path", "")] = (getattr(callback, "current_score", None), "latest")
    for path, score in getattr(callback, "best_k_models", {}).items():
        named[path] = (score, "best_k")
    named[getattr(callback, "best_model_path", "")] = (getattr(callback, "best_model_score", None), "best")
    files = [
        SavedFile(os.path.getmtime(path), path, None if score is None else _number(score), alias)
        for path, (score, alias) in named.items()
        if path and os.path.exists(path)
    ]
    fresh = sorted(file for file in files if seen.get(file.path, -1.0) < file.modified)
    seen.update({file.path: file.modified for file in fresh})
    return fresh
