"""The model registry: a training's best checkpoint as a version of the project's model, and the alias that is served.

Every version notes the metric it was judged by. An alias moves only to a version that is better, and remembers where it
was.

Owns: what a version holds, the gate, the alias and its history. Does not own: MLflow, nor the run (`history`).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from . import history
from .build import build_science, complete
from .config import Config, load
from .engine.loggers._mlflow_run import MANNERS, without_password
from .engine.loggers._sender import reason_of
from .run import read_status
from .sources import ProjectError
from .tracking import tracking_uri

EXAMPLE_ROWS = 2
METRIC, VALUE, MODE = "judged_by", "value", "mode"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # how MLflow says that there is no such thing


@contextmanager
def registry(config: Config) -> Iterator[Registry]:
    """Give the registry of a project; what its server says, or that it says nothing, becomes one sentence."""
    try:
        yield Registry(config)
    except (MlflowException, OSError) as error:
        where = without_password(mlflow.get_tracking_uri())
        raise ProjectError(
            f"The registry at {where} did not answer as it should: {reason_of(error)}. Look whether the server runs "
            "and MLFLOW_TRACKING_URI is right.", 1,
        ) from error  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """What a version must reach before an alias may point to it.

    Attributes:
        at_least: The metric's worst accepted value, by its mode; None: any.
        force: Let it pass though it is not better than the version that the alias points to.
    """

    at_least: float | None = None
    force: bool = False


class Registry:
    """The versions of one model.

    Args:
        config: Names the model (its `experiment`), and where the tracker is.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.name = config, config.experiment
        for name, value in MANNERS.items():
            os.environ.setdefault(name, value)
        mlflow.set_tracking_uri(tracking_uri(config))
        self.client = mlflow.MlflowClient()

    def register(self, run: str, alias: str | None, gate: Gate) -> str:
        """Make a version of a training's best checkpoint, and give it the alias if it passes; return its number.

        Raises:
            ProjectError: There is no such training, the tracker does not know it, or the gate is shut.
        """
        folder = self._folder(run)
        judged = self._judged(folder)
        if alias:
            self._check(judged, alias, gate)
        run_id = self._run_id(folder)
        with tempfile.TemporaryDirectory() as place:
            model = Path(place) / "model"
            save_model(folder, model)
            self.client.log_artifacts(run_id, str(model), "model")
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {**judged, "run_folder": folder.name}
        version = self.client.create_model_version(self.name, f"runs:/{run_id}/model", run_id, tags).version
        if alias:
            self._point(alias, str(version))
        return str(version)

    def promote(self, version: str, alias: str, gate: Gate) -> None:
        """Give the alias to a version that passes the gate.

        Raises:
            ProjectError: There is no such version, or the gate is shut.
        """
        self._check(self._tags(version), alias, gate)
        self._point(alias, version)

    def rollback(self, alias: str) -> str:
        """Give the alias back to the version that had it before, and return that.

        Raises:
            ProjectError: There was none.
        """
        *earlier, before = self._history(alias) or [""]
        if not before:
            raise ProjectError(f"`{alias}` of `{self.name}` has had no earlier version.")
        self._tags(before)
        self.client.set_registered_model_alias(self.name, alias, before)
        self._remember(alias, earlier)
        return before

    def current(self, alias: str) -> str | None:
        """Return the version that the alias points to."""
        try:
            return str(self.client.get_model_version_by_alias(self.name, alias).version)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            return None

    def _check(self, judged: dict[str, str], alias: str, gate: Gate) -> None:
        metric, mode, value = judged.get(METRIC, ""), judged.get(MODE, "min"), float(judged.get(VALUE, "nan"))
        sign = 1 if mode == "max" else -1
        if gate.at_least is not None and not sign * value >= sign * gate.at_least:
            raise ProjectError(f"The gate is shut: {metric} is {value:.6g}, {gate.at_least:.6g} is asked for.", 1)
        holder = self.current(alias)
        if holder is None or gate.force:
            return
        held = self._tags(holder)
        if held.get(METRIC) != metric:
            raise ProjectError(
                f"Version {holder}, which `{alias}` points to, was judged by {held.get(METRIC)}, this one by {metric}. "
                "Compare them yourself, then: --force.", 1,
            )  # fmt: skip
        if not sign * value > sign * float(held[VALUE]):
            raise ProjectError(
                f"The gate is shut: {metric} is {value:.6g}, version {holder} (`{alias}`) has "
                f"{float(held[VALUE]):.6g}. Nothing was changed; --force lets it pass.", 1,
            )  # fmt: skip

    def _point(self, alias: str, version: str) -> None:
        holder = self.current(alias)
        if holder == version:
            return
        if holder is not None:
            self._remember(alias, [*self._history(alias), holder])
        self.client.set_registered_model_alias(self.name, alias, version)

    def _history(self, alias: str) -> list[str]:
        try:
            tags = self.client.get_registered_model(self.name).tags
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            return []
        return [version for version in tags.get(f"history.{alias}", "").split(",") if version]

    def _remember(self, alias: str, versions: list[str]) -> None:
        self.client.set_registered_model_tag(self.name, f"history.{alias}", ",".join(versions[-100:]))

    def _tags(self, version: str) -> dict[str, str]:
        try:
            return dict(self.client.get_model_version(self.name, version).tags)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            raise ProjectError(f"There is no version {version} of `{self.name}`: {error}") from None

    def _folder(self, run: str) -> Path:
        if run == "newest":
            return history.find_checkpoint(self.config, "best").parent.parent
        folder = Path(run) if Path(run).is_dir() else self.config.runs / self.config.experiment / run
        if history.last_checkpoint(folder) is None:
            raise ProjectError(f"{folder} is no training with a checkpoint. Give the folder of one, or `newest`.")
        return folder.resolve()

    def _judged(self, folder: Path) -> dict[str, str]:
        best = read_status(folder).get("best")
        if not best:
            raise ProjectError(
                f"{folder.name} monitored no metric, so nothing can be compared. Name one: -o monitor.metric=NAME."
            )
        return {METRIC: best["metric"], VALUE: repr(best["value"]), MODE: best["mode"]}

    def _run_id(self, folder: Path) -> str:
        experiment = self.client.get_experiment_by_name(self.config.experiment)
        query = f"tags.run_folder = '{folder.name}'"
        found = self.client.search_runs([experiment.experiment_id], query) if experiment else []
        if not found:
            raise ProjectError(
                f"The tracker at {mlflow.get_tracking_uri()} has no run of {folder.name}. Send what waits: sync."
            )
        return str(found[0].info.run_id)


def save_model(folder: Path, place: Path) -> None:
    """Write the best checkpoint of a run's folder as an MLflow model, with the code it needs, signature and example."""
    for name in ("mlflow.pytorch", "mlflow.utils.environment"):  # they warn of pickle, and of a missing pip
        logging.getLogger(name).setLevel(logging.ERROR)
    config = complete(load(folder / "config.yaml"))
    task, data = build_science(config)
    checkpoint = history.best_checkpoint(folder)
    assert checkpoint is not None  # `_folder` has looked
    task.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    task.eval()
    example, signature = None, None
    if (rows := _example(data if data is not None else task)) is not None:
        with torch.no_grad():
            outputs = task(rows)
        example = rows.numpy()
        if isinstance(outputs, torch.Tensor):
            signature = infer_signature(example, outputs.numpy())
    mlflow.pytorch.save_model(
        task,
        str(place),
        signature=signature,
        input_example=example,
        code_paths=[str(Path(__file__).parent)],
        extra_files=[str(checkpoint), str(folder / "config.yaml")],
        pip_requirements=_requirements(),
        serialization_format="pickle",
    )


def _requirements() -> list[str]:
    """Return what the code imports, in the versions of now; MLflow would take a minute to find it out."""
    names = ("mlflow", "numpy", "packaging", "pydantic", "pyyaml", "rich", "scikit-learn", "torch", "torchmetrics")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*names, "typer")]


def _example(source: Any) -> torch.Tensor | None:
    """Return a few rows as the model takes them, from the loader that predicts; None where that is no tensor."""
    try:
        if hasattr(source, "setup"):
            source.setup("predict")
        loader = source.predict_dataloader()
    except Exception:  # the team's data may not predict at all; then the model goes without an example
        return None
    batch = next(iter(loader), None)
    batch = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return batch[:EXAMPLE_ROWS] if isinstance(batch, torch.Tensor) else None
