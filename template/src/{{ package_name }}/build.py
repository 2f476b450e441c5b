"""From a configuration to objects: task, data, callbacks, loggers and trainer.

Owns: which arguments are filled in so that nobody has to write them (paths, names, the monitored metric).
Does not own: how classes are found and arguments checked (`classes`), and the run's folder (`run`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from . import science
from .callbacks import DataFingerprints, RunFiles, SystemMetrics
from .classes import check_arguments, find_class, parameters_of, with_defaults
from .config import ClassSection, Config, MonitorSection
from .engine import Callback, LightningDataModule, LightningModule, Trainer, callbacks, loggers
from .engine.loggers import Logger
from .mistakes import Mistakes
from .record import run_tags
from .run import Run
from .sources import ProjectError
from .tracking import tracking_uri


def complete(config: Config) -> Config:
    """Check every class and argument that the configuration names; add the defaults of task and data.

    Raises:
        ProjectError: A class does not exist, or does not take an argument as it was given.
    """
    filled = {}
    for name, cls in {"task": task_class(config), "data": data_class(config)}.items():
        if cls is not None:
            checked = check_arguments(cls, getattr(config, name).arguments, (name,), config.settings)
            filled[name] = with_defaults(cls, checked, (name,))
    if "data" not in filled and config.data.arguments:
        place = config.settings.place(("data",))
        raise ProjectError(f"`data` has keys{place}, but no class takes them: the task brings its own loaders.")
    for _ in (*_chosen(config, "callbacks", callbacks, Callback), *_chosen(config, "loggers", loggers, Logger)):
        pass  # checked by being looked at
    return config.completed(filled, _monitor(config))


def task_class(config: Config) -> type[LightningModule]:
    """Return the class of the task.

    Raises:
        ProjectError: There is none under that name, or it is no LightningModule.
    """
    cls: type[LightningModule] = find_class(
        config.task.class_ or "Task", science, LightningModule, ("task",), config.settings
    )
    return cls


def data_class(config: Config) -> type[LightningDataModule] | None:
    """Return the class of the data; None when the task brings its own loaders and the configuration names no class.

    Raises:
        ProjectError: There is none under that name, or it is no LightningDataModule.
    """
    if config.data.class_ is None and _brings_loaders(task_class(config)):
        return None
    cls: type[LightningDataModule] = find_class(
        config.data.class_ or "Data", science, LightningDataModule, ("data",), config.settings
    )
    return cls


def build_science(config: Config) -> tuple[LightningModule, LightningDataModule | None]:
    """Construct the task and the data from a completed configuration."""
    data = data_class(config)
    return task_class(config)(**config.task.arguments), data(**config.data.arguments) if data else None


def build_trainer(config: Config, run: Run, *, track: bool = True) -> Trainer:
    """Construct the trainer with the run's folder, its callbacks and its loggers.

    Args:
        config: A completed configuration.
        run: Where files go.
        track: False: no logger but the CSV file; nor has a temporary run another.
    """
    return Trainer(
        **config.trainer.arguments(),
        default_root_dir=str(run.path),
        callbacks=[
            loggers.EventLog(str(run.path), publish=run.note_progress),
            RunFiles(run.path),
            Mistakes(run.path),
            DataFingerprints(),
            SystemMetrics(),
            *_callbacks(config, run),
        ],
        logger=_loggers(config, run, track=track and not run.is_temporary),
    )


def sweep_tracker(config: Config, name: str) -> loggers.MLFlowLogger | None:
    """Construct the MLflow logger of a whole sweep, below which its trials are shown; None where MLflow is off."""
    for cls, arguments in _chosen(config, "loggers", loggers, Logger):
        if issubclass(cls, loggers.MLFlowLogger):
            run = Run(config.runs / config.experiment / name)
            made: loggers.MLFlowLogger = cls(**{**_logger_arguments(cls.__name__, config, run), **arguments})
            return made
    return None


def reporters(config: Config, **changed: Any) -> list[Any]:
    """Construct the callbacks that can tell of a whole sweep, with some of their arguments changed."""
    chosen = _chosen(config, "callbacks", callbacks, Callback)
    return [cls(**{**arguments, **changed}) for cls, arguments in chosen if hasattr(cls, "sweep")]


def _brings_loaders(task: type[LightningModule]) -> bool:
    names = [f"{stage}_dataloader" for stage in ("train", "val", "test", "predict")]
    return any(getattr(task, name, None) is not getattr(LightningModule, name, None) for name in names)


def _monitor(config: Config) -> MonitorSection:
    """Return the metric to monitor: the configuration's, else the one that the task's class names."""
    given, task = config.monitor, task_class(config)
    if given.metric and not given.mode:
        place = config.settings.place(("monitor", "metric"))
        raise ProjectError(
            f"`monitor.metric` is given without `monitor.mode`{place}. Add it: -o monitor.mode=min, or max."
        )
    mode = given.mode or getattr(task, "monitor_mode", "min")
    return MonitorSection(metric=given.metric or getattr(task, "monitor", None), mode=mode)


def _callbacks(config: Config, run: Run) -> list[Callback]:
    metric, mode = config.monitor.metric, config.monitor.mode
    made: list[Callback] = []
    for cls, arguments in _chosen(config, "callbacks", callbacks, Callback):
        known = parameters_of(cls)
        filled: dict[str, Any] = {"dirpath": str(run.checkpoints)} if "dirpath" in known else {}
        if metric and "monitor" in known and "monitor" not in arguments:  # a finder's `mode` is another
            filled |= {name: value for name, value in (("monitor", metric), ("mode", mode)) if name in known}
        watches = known.get("monitor")
        if watches and watches.default is watches.empty and "monitor" not in {**filled, **arguments}:
            continue  # it must watch a metric, and neither the task nor the configuration names one
        made.append(cls(**{**filled, **arguments}))
    return made


def _loggers(config: Config, run: Run, *, track: bool) -> list[Logger]:
    made: list[Logger] = [loggers.CSVLogger(save_dir=str(run.path), name="", version="")]
    if track:
        for cls, arguments in _chosen(config, "loggers", loggers, Logger):
            made.append(cls(**{**_logger_arguments(cls.__name__, config, run), **arguments}))
    return made


def _logger_arguments(class_name: str, config: Config, run: Run) -> dict[str, Any]:
    """Return what each tracker wants to know about a run, in its own words."""
    if class_name == "MLFlowLogger":
        uri = tracking_uri(config)
        is_local = uri == config.local_tracking_uri
        artifacts = {"artifact_location": (config.runs / "mlflow-artifacts").as_uri()} if is_local else {}
        return {
            "experiment_name": config.experiment,
            "run_name": run.name,
            "tracking_uri": uri,
            "tags": run_tags(config, run),
            "spool_dir": str(run.path / "unsent"),
            **artifacts,
        }
    return {
        "TensorBoardLogger": {"save_dir": str(run.path), "name": "", "version": "tensorboard"},
        "WandbLogger": {"project": config.experiment, "name": run.name, "save_dir": str(run.path)},
        "CometLogger": {"project": config.experiment, "name": run.name},
    }.get(class_name, {})


def _chosen(config: Config, group: str, home: ModuleType, kind: type) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the class and the checked arguments of each callback or logger that is not turned off."""
    sections: dict[str, ClassSection | None] = getattr(config, group)
    for name, section in sections.items():
        if section is None:
            continue
        key = (group, name)
        if section.class_ is None:
            raise ProjectError(f"`{group}.{name}` names no `class`{config.settings.place(key)}.")
        cls = find_class(section.class_, home, kind, key, config.settings)
        yield cls, check_arguments(cls, section.arguments, key, config.settings)
