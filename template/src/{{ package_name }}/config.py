"""What can be configured, typed; and how the files, presets and overrides become one checked configuration.

Owns: the schema, its defaults and the sentences about mistakes in it. Does not own: reading YAML (`sources`), and
checking arguments against the classes that take them (`build`), which needs torch.

    configs/config.yaml  <-  configs/presets/NAME.yaml, in the order given  <-  -o dotted.key=value
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from .engine.errors import did_you_mean
from .sources import Key, ProjectError, Settings, describe, dotted, read_file, read_override

Length = Annotated[str, Field(pattern=r"^[\d.e+]+(ep|ba)$")]
"""`10ep` or `500ba`, where epochs or batches are counted."""

DEFAULT_PATH = Path("configs/config.yaml")


class Section(BaseModel):
    """A group of keys: unknown ones are refused, and no type is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ClassSection(Section):
    """A class by name, and the arguments of its `__init__`, side by side; `build` checks them against the class."""

    model_config = ConfigDict(extra="allow")

    class_: str | None = Field(None, alias="class")
    """Name in the section's home (`EarlyStopping`), in this package (`science.task.Other`), or anywhere."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as written, without `class`."""
        return dict(self.model_extra or {})


class MonitorSection(Section):
    """The number that decides which checkpoint is best and when to stop; by default the task names it."""

    metric: str | None = None
    """A name the task logs. None: the task's attribute `monitor`."""
    mode: Literal["min", "max"] | None = None
    """Which way is better. None: the task's attribute `monitor_mode`."""


class TrainerSection(Section):
    """Arguments of the engine's `Trainer`, with its names and meanings. None: the engine's default."""

    accelerator: str | None = None
    devices: int | str | list[int] | None = None
    strategy: str | None = None
    num_nodes: int | None = None
    precision: int | str | None = None
    max_epochs: int | Length | None = None
    min_epochs: int | Length | None = None
    max_steps: int | Length | None = None
    min_steps: int | Length | None = None
    max_time: str | dict[str, int] | None = None
    limit_train_batches: int | float | Length | None = None
    limit_val_batches: int | float | Length | None = None
    limit_test_batches: int | float | Length | None = None
    limit_predict_batches: int | float | Length | None = None
    overfit_batches: int | float | Length | None = None
    fast_dev_run: bool | int | None = None
    val_check_interval: int | float | str | None = None
    check_val_every_n_epoch: int | Length | None = None
    num_sanity_val_steps: int | Length | None = None
    log_every_n_steps: int | Length | None = None
    accumulate_grad_batches: int | None = None
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    inference_mode: bool | None = None
    use_distributed_sampler: bool | None = None
    sync_batchnorm: bool | None = None
    reload_dataloaders_every_n_epochs: int | Length | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool | None = None
    compile: bool | str | None = None
    preflight: bool | dict[str, bool] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what was set, as arguments of `Trainer`."""
        return self.model_dump(exclude_none=True)


class Config(Section):
    """Everything that makes one run, beside the code."""

    experiment: str = Field("experiment", pattern=r"^[^\s./\\][^/\\]*$")
    """Folder under `runs_dir`, and the experiment's name in the tracker."""
    name: str | None = Field(None, pattern=r"^[^\s./\\][^/\\]*$")
    """Ends the name of the run's folder. None: the command, such as `fit`."""
    seed: int | None = Field(42, ge=0, lt=2**32)
    """Seeds python, numpy, torch and the loaders' workers. None: left alone."""
    runs_dir: str = "runs"
    """Where runs go; relative to the project's folder."""
    test_after_fit: bool = True
    """Test the best checkpoint when the training ends, if the data has a test set."""
    tracking: str = Field("local", pattern=r"^[^\s./\\][^/\\]*$")
    """Where runs are tracked: a file of `configs/tracking`."""
    monitor: MonitorSection = MonitorSection()
    task: ClassSection = ClassSection()
    """Arguments of `science.Task`, or of the `class` named here."""
    data: ClassSection = ClassSection()
    """Arguments of `science.Data`, or of the `class` named here."""
    trainer: TrainerSection = TrainerSection()
    callbacks: dict[str, ClassSection | None] = {}
    """Any name, and a class of `engine.callbacks` or your own. None turns one off."""
    loggers: dict[str, ClassSection | None] = {}
    """Any name, and a class of `engine.loggers` or your own; metrics.csv is always written."""

    _settings: Settings = PrivateAttr(default_factory=Settings)
    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _presets: tuple[str, ...] = PrivateAttr(())

    @field_validator("monitor", "task", "data", "trainer", "callbacks", "loggers", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value  # `task:` with nothing below it is None in YAML

    @property
    def settings(self) -> Settings:
        """The merged settings with their places, for messages."""
        return self._settings

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets laid on top."""
        return self._presets

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self._root

    @property
    def runs(self) -> Path:
        """Absolute path of the folder of all runs."""
        return self._root / self.runs_dir

    @property
    def local_tracking_uri(self) -> str:
        """Address of MLflow's embedded default: one SQLite file beside the runs, no server."""
        path = str(self.runs / "mlflow.db").replace("%", "%25").replace("?", "%3F")  # as it must stand in an address
        return f"sqlite:///{path}"

    def completed(self, arguments: Mapping[str, Mapping[str, Any]], monitor: MonitorSection) -> Config:
        """Return a copy with the complete arguments of sections that name classes, and with the metric to monitor."""
        changed: dict[str, Section] = {"monitor": monitor}
        for name, values in arguments.items():
            changed[name] = ClassSection.model_validate({"class": getattr(self, name).class_, **values})
        return self.model_copy(update=changed)

    def to_yaml(self) -> str:
        """Return the configuration as YAML that `load` reads back to the same."""
        values = self.model_dump(by_alias=True)
        values["trainer"] = self.trainer.arguments()
        for name in ("task", "data"):
            values[name] = {key: value for key, value in values[name].items() if key != "class" or value is not None}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def find_root(*starts: Path) -> Path:
    """Return the nearest folder with `configs/` in it, upwards from the current folder, then from each of `starts`.

    Without one it is the current folder.
    """
    here = Path.cwd()
    above = (folder for start in (here, *starts) for folder in (start.resolve(), *start.resolve().parents))
    return next((folder for folder in above if (folder / DEFAULT_PATH.parent).is_dir()), here)


def load(path: str | Path | None = None, presets: Sequence[str] = (), overrides: Sequence[str] = ()) -> Config:
    """Read, merge and check the configuration.

    Args:
        path: YAML file; None: `configs/config.yaml` of the project around the current folder.
        presets: Names of files in `configs/presets/`, laid on top in this order.
        overrides: `dotted.key=value`, laid on top of those; or `option dotted.key=value` to name another option.

    Raises:
        ProjectError: A file is missing or no YAML, a key is unknown, a value has the wrong type.
    """
    root = find_root(*([Path(path).parent] if path else []))
    settings = Settings()
    settings.update(read_file(short(Path(path) if path else root / DEFAULT_PATH)))
    for name in presets:
        settings.update(read_file(preset_path(root, name)))
    for override in overrides:
        option, _, text = override.rpartition(" ") if override.startswith("-") else ("-o", "", override)
        settings.update(read_override(text, option))
    try:
        config = Config.model_validate(settings.values)
    except ValidationError as error:
        raise ProjectError("\n".join(_explain(error, settings))) from None
    config._settings, config._root, config._presets = settings, root, tuple(presets)
    return config


def preset_path(root: Path, name: str) -> Path:
    """Return the file of a preset.

    Raises:
        ProjectError: There is no such preset; the text lists those there are.
    """
    known = preset_names(root)
    if name not in known:
        listed = f"There are: {', '.join(known)}." if known else f"There are none in {short(_preset_folder(root))}."
        raise ProjectError(f"There is no preset `{name}`.{did_you_mean(name, known)} {listed}")
    return short(_preset_folder(root) / f"{name}.yaml")


def preset_names(root: Path) -> list[str]:
    """Return the names of the presets in `configs/presets/`, sorted."""
    return sorted(file.stem for file in _preset_folder(root).glob("*.yaml"))


def _preset_folder(root: Path) -> Path:
    return root / DEFAULT_PATH.parent / "presets"


def short(path: Path) -> Path:
    """Return the path as short as it can be said from the current folder."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _explain(error: ValidationError, settings: Settings) -> Iterable[str]:
    """Say each mistake in one sentence: the key, what it should be, what it is, and where it was written."""
    wrong: dict[Key, list[str]] = {}
    for detail in error.errors(include_url=False):
        location = tuple(str(part) for part in detail["loc"])
        key = _written_key(location, settings)
        if detail["type"] == "extra_forbidden":
            yield _unknown_key(key, settings)
        else:
            wrong.setdefault(key, []).append(_expected(detail["type"], detail["msg"]))
    for key, expected in wrong.items():
        found = describe(_value_at(settings.values, key))
        yield f"`{dotted(key)}` should be {' or '.join(dict.fromkeys(expected))}, not {found}{settings.place(key)}."


def _written_key(location: Key, settings: Settings) -> Key:
    """Drop what pydantic adds to a location, such as the member of a union that did not match."""
    length = max((i for i in range(1, len(location) + 1) if location[:i] in settings.places), default=len(location))
    return location[:length]


def _unknown_key(key: Key, settings: Settings) -> str:
    section = Config.model_fields[key[0]].annotation if len(key) > 1 else Config
    fields = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
    known = [*fields]
    is_trainers = section is Config and key[0] in TrainerSection.model_fields
    near = f" Did you mean `trainer.{key[0]}`?" if is_trainers else did_you_mean(key[-1], known)
    listed = "" if near else f" Known here: {', '.join(known)}."
    return f"`{dotted(key)}` is not a known key{settings.place(key)}.{near}{listed}"


def _expected(kind: str, message: str) -> str:
    if kind in {"model_type", "dict_type", "model_attributes_type"}:
        return "a mapping of keys"
    if kind == "string_pattern_mismatch" and "(ep|ba)" in message:
        return "text such as 10ep or 500ba"
    if kind == "string_pattern_mismatch":
        return "a plain folder name (no slash, no leading dot)"
    return message.removeprefix("Input should be ").removeprefix("Input ")


def _value_at(values: Any, key: Key) -> Any:
    for part in key:
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values
