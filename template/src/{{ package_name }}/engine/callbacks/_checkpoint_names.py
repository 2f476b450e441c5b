"""File names of checkpoints: templates, version suffixes, links. Touches files on the calling rank only."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..checkpoint_file import TorchCheckpointIO
from ..errors import MisconfigurationException

if TYPE_CHECKING:
    from ..trainer import Trainer

T = TypeVar("T")
_FIELD = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")


def fill(template: str, metrics: Mapping[str, Any], insert_names: bool = True, equals: str = "=") -> str:
    """Return `template` with every `{name}` or `{name:format}` replaced by that metric, 0 where there is none.

    Args:
        template: As given to `ModelCheckpoint(filename=...)`.
        metrics: Name -> number or tensor of one element.
        insert_names: Write `name=value` instead of the value alone.
        equals: What stands between name and value.

    Raises:
        MisconfigurationException: A format does not fit its value, e.g. `{val_loss:d}`.

    Example:
        >>> fill("{epoch:02d}-{val_loss:.2f}", {"epoch": 3, "val_loss": 0.1234})
        'epoch=03-val_loss=0.12'
    """

    def value_of(field: re.Match[str]) -> str:
        name, form = field.group(1), field.group(2) or ""
        value = metrics.get(name, 0)
        value = value.item() if hasattr(value, "item") else value
        try:
            text = format(value, form)
        except ValueError as error:
            raise MisconfigurationException(
                f"The checkpoint name {template!r} formats `{name}` = {value!r} by {form!r}: {error}. "
                f"Use a format for that type, e.g. `{{{name}:.3f}}`."
            ) from error
        parts = ("_" if part in ("", "..") else part for part in name.split("/"))  # never out of the folder
        return f"{'/'.join(parts)}{equals}{text}" if insert_names else text

    return _FIELD.sub(value_of, template).replace("\0", "_")  # which no file's name may hold


def absolute(path: str | Path) -> str:
    """Return the real path of a local folder; an URL stays as it is."""
    return os.fspath(path) if "://" in os.fspath(path) else os.path.realpath(os.path.expanduser(path))


def folder_for(trainer: Trainer) -> str:
    """Return the folder for checkpoints of a run: beside what its first logger writes, else in `default_root_dir`."""
    parts: list[str | Path] = [trainer.default_root_dir]
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        parts = [logger.save_dir or trainer.default_root_dir, str(logger.name), version]
    return absolute(os.path.join(*parts, "checkpoints"))


def agreed(trainer: Trainer, decide: Callable[[], T]) -> T:
    """Return what rank 0 decides, on every rank (collective)."""
    if trainer.world_size == 1:
        return decide()
    decision: T = trainer.strategy.broadcast(decide() if trainer.is_global_zero else None)
    return decision


def metrics_of(trainer: Trainer) -> dict[str, Any]:
    """Return the metrics that a name may hold, on the host (sync; a collective where a metric is computed by all)."""
    metrics: dict[str, Any] = {
        name: value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in trainer.callback_metrics.items()
    }
    metrics["epoch"] = int(metrics.get("epoch", trainer.current_epoch))
    metrics["step"] = int(metrics.get("step", trainer.global_step))
    return metrics


def versions(folder: str, stem: str, extension: str) -> set[str]:
    """Return the files in a folder that have this name, with or without a version."""
    pattern = re.compile(rf"{re.escape(stem)}(-v?\d+)?{re.escape(extension)}")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    return {os.path.join(folder, name) for name in found if pattern.fullmatch(name)}


def writes_beside(trainer: Trainer) -> bool:
    """Return whether files are replaced, never written into, so that two names may share one."""
    return type(trainer.strategy.checkpoint_io) is TorchCheckpointIO


def is_inside(path: str, folder: str) -> bool:
    """Return whether `path` lies somewhere under `folder`."""
    return Path(folder).absolute() in Path(path).absolute().parents


def link(target: str, path: str, symbolic: bool) -> bool:
    """Make `path` another name of `target`, replacing what was there in one step; False where that is not possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{os.getpid()}.partial")  # as saves are called: a later one clears it away
    try:
        if symbolic:
            os.symlink(os.path.relpath(target, os.path.dirname(path)), beside)
        else:
            os.link(target, beside)
        os.replace(beside, path)
    except OSError:  # another file system, or a Windows account that may not link
        with suppress(OSError):
            os.unlink(beside)
        return False
    return True
