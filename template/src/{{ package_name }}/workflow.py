"""What the commands do, callable from Python as well: `fit`, `tune` before it, and `use` of what was trained.

    from my_package.config import load
    outcome = fit(load(overrides=["trainer.max_epochs=3"]))

Each makes one run (see `run`), hands science and trainer to each other, and returns what came out.

Owns: the order of things in a run. Does not own: the training (`engine`), and how results are shown (`report`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from . import history, predictions, ranks, report
from .build import build_science, build_trainer, complete
from .config import Config
from .engine import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from .engine.distributed import rank_zero_warn
from .engine.errors import EngineError, MisconfigurationException
from .engine.loggers import MLFlowLogger
from .engine.tuner import Tuner
from .run import Run, start
from .sources import ProjectError

_SCIENCE, _ENGINE = (str(Path(__file__).parent / name) for name in ("science", "engine"))


@dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Attributes:
        folder: The run's folder; gone after a `fast_dev_run`.
        results: Metric name to value, of the test or validation.
        trainer: The trainer, for a closer look.
        trained: How far a training came, in words; empty for other commands.
        best: Name and value of the monitored metric at the best checkpoint; None: nothing was monitored.
        checkpoint: The best checkpoint, or the one evaluated.
        interrupted: Whether the training was stopped by hand before its end.
        files: Other files written, such as predictions.
        settings: What was found, as overrides for a training: `task.lr=0.0021`.
    """

    folder: Path
    results: Mapping[str, float]
    trainer: Trainer
    trained: str = ""
    best: tuple[str, float] | None = None
    checkpoint: Path | None = None
    interrupted: bool = False
    files: Sequence[Path] = ()
    settings: Sequence[str] = ()

    @property
    def is_tracked(self) -> bool:
        """Whether MLflow or TensorBoard, which `ui` opens, has the curves."""
        return any(type(logger).__name__ in {"MLFlowLogger", "TensorBoardLogger"} for logger in self.trainer.loggers)


def fit(
    config: Config, resume: str | None = None, arguments: Sequence[str] = (), callbacks: Sequence[Callback] = ()
) -> Outcome:
    """Train; then test the best checkpoint, where there is a test set and the configuration does not say otherwise.

    Args:
        config: From `config.load`.
        resume: None: start fresh. `auto`: go on with the newest training of the experiment if it did not finish, in
            its own folder, else start fresh. `last` or a path: start a new run from that checkpoint.
        arguments: The command line, for the record.
        callbacks: Besides those of the configuration.

    Raises:
        ProjectError: The configuration does not fit the science, or the run cannot go on.
    """
    config = complete(config)
    unfinished = history.unfinished(config) if resume == "auto" and ranks.is_rank_zero() else None
    checkpoint = history.find_checkpoint(config, resume) if resume not in {None, "auto"} else None
    with _begun(config, "fit", arguments, checkpoint, unfinished) as (run, trainer, task, data):
        trainer.callbacks = [*callbacks, *trainer.callbacks]
        began = time.monotonic()
        trainer.fit(task, datamodule=data, ckpt_path=run.checkpoint and str(run.checkpoint))
        trained = _how_far(trainer, time.monotonic() - began)
        best, path = _best(trainer)
        run.update(best_checkpoint=path and run.relative(path), epochs=trainer.current_epoch, steps=trainer.global_step)
        run.update(best=best and {"metric": best[0], "value": best[1], "mode": config.monitor.mode})
        results: Mapping[str, float] = {}
        if trainer.interrupted:
            run.update(status="interrupted")
        elif config.test_after_fit and _has_test(task, data):
            results = _merged(trainer.test(task, datamodule=data, ckpt_path=path and str(path), verbose=False))
        run.update(results=results)
        if path and not trainer.interrupted:
            _give_model(run, trainer)
    return Outcome(run.path, results, trainer, trained, best, path, trainer.interrupted)


def use(
    config: Config, stage: Literal["validate", "test", "predict"], checkpoint: Path, arguments: Sequence[str] = ()
) -> Outcome:
    """Validate, test or predict with a checkpoint; predictions are written into the run's folder.

    Args:
        config: From `config.load`; best the one that the checkpoint was trained with (`history.config_beside`).
        stage: Which loader and which step of the science to use.
        checkpoint: A file, for instance from `history.find_checkpoint`.
        arguments: The command line, for the record.

    Raises:
        ProjectError: The configuration does not fit the science, or the checkpoint not the model.
    """
    config = complete(config)
    with _begun(config, stage, arguments, checkpoint) as (run, trainer, task, data):
        if stage == "predict":
            outputs = trainer.predict(task, datamodule=data, ckpt_path=str(checkpoint), return_predictions=True)
            written = [predictions.write(outputs or [], run.path)] if run.writes else []
            results: dict[str, float] = {}
        else:
            measure = trainer.validate if stage == "validate" else trainer.test
            results = _merged(measure(task, datamodule=data, ckpt_path=str(checkpoint), verbose=False))
            written = []
        run.update(results=results, files=[str(file) for file in written])
    return Outcome(run.path, results, trainer, checkpoint=checkpoint, files=written)


def tune(config: Config, what: Sequence[str] = ("lr",), arguments: Sequence[str] = ()) -> Outcome:
    """Search a learning rate, the largest batch size, or both (the size first); no weight and no file is changed.

    Args:
        config: From `config.load`.
        what: "lr", "batch_size".
        arguments: The command line, for the record.

    Raises:
        ProjectError: The configuration does not fit the science, or nothing holds the value to be found.
    """
    config = complete(config)
    with _begun(config, "tune", arguments, None) as (run, trainer, task, data):
        tuner = Tuner(trainer)
        found: dict[str, float | None] = {}
        files: list[Path] = []
        if "batch_size" in what:
            found[_owner(config, "batch_size")] = tuner.scale_batch_size(task, datamodule=data, mode="binsearch")
        if "lr" in what:
            name = "learning_rate" if "learning_rate" in config.task.arguments else "lr"
            curve = tuner.lr_find(task, datamodule=data, attr_name=name)
            suggestion = curve.suggestion() if curve is not None else None
            if suggestion is not None:
                found[_owner(config, name)] = float(f"{suggestion:.3g}")
            if curve is not None and run.writes and find_spec("matplotlib") is not None:
                files.append(run.path / "lr_find.svg")
                curve.plot(suggest=True).savefig(files[0])
        settings = [f"{key}={value}" for key, value in found.items() if value is not None]
        run.update(settings=settings)
    return Outcome(run.path, {}, trainer, files=files, settings=settings)


def _give_model(run: Run, trainer: Trainer) -> None:
    """Give the best checkpoint to MLflow as a model, where `log_model` asks for checkpoints."""
    takers = [logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger) and logger.takes_models]
    if not takers or not run.writes:
        return
    from .registry import save_model  # imports MLflow, which takes seconds

    try:
        save_model(run.path, run.path / "model")
    except Exception as error:  # the run itself is whole
        rank_zero_warn(
            f"MLflow gets no model of this run, only its checkpoints ({error}). Later: register --run {run.name}"
        )
        return
    for logger in takers:
        logger.log_artifact(run.path / "model", "model", move=logger is takers[-1])
        logger.finalize("success")


def _owner(config: Config, name: str) -> str:
    """Return the key under which a value is configured: of the data, else of the task."""
    return f"data.{name}" if name in config.data.arguments else f"task.{name}"


@contextmanager
def _begun(
    config: Config, command: str, arguments: Sequence[str], checkpoint: Path | None, unfinished: Run | None = None
) -> Iterator[tuple[Run, Trainer, LightningModule, LightningDataModule | None]]:
    """Build everything, make the run's folder last, and turn the engine's errors into sentences."""
    if config.seed is not None:
        seed_everything(config.seed, workers=True)
    task, data = build_science(config)
    run = start(config, command, arguments, checkpoint, unfinished)
    with _sentences():
        try:
            trainer = build_trainer(config, run, track=command not in ("predict", "tune"))
        except BaseException:
            run.discard()
            raise
        report.begin(run)
        with run.recorded():
            run.update(device=str(trainer.strategy.root_device), processes=trainer.world_size)
            yield run, trainer, task, data


@contextmanager
def _sentences() -> Iterator[None]:
    """Say an error of the engine in its own sentence, and where in the science it came up."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not isinstance(error, EngineError) and not _raised_by_engine(frames[-1]):
            raise
        inside = [frame for frame in frames if frame.filename.startswith(_SCIENCE)]
        place = f" (at {Path(inside[-1].filename).name}, line {inside[-1].lineno}: {inside[-1].line})" if inside else ""
        raise ProjectError(f"{error}{place}", 2 if isinstance(error, MisconfigurationException) else 1) from error


def _raised_by_engine(last: traceback.FrameSummary) -> bool:
    """Tell what the engine says on purpose, such as the RuntimeError of a missing metric, from what breaks in it.

    The traceback of such an error ends at the engine's caller, here; under a debugger it does not.
    """
    return last.filename == __file__ or (last.filename.startswith(_ENGINE) and (last.line or "").startswith("raise "))


def _how_far(trainer: Trainer, seconds: float) -> str:
    """Say how long a training was, and why it ended where the plan does not tell."""
    stopper: Any = trainer.early_stopping_callback
    reason = (getattr(stopper, "stopping_reason_message", None) or "").removeprefix("stopping: ")
    took = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    epochs, steps = (
        f"{count} {unit}{'' if count == 1 else 's'}"
        for count, unit in ((trainer.current_epoch, "epoch"), (trainer.global_step, "step"))
    )
    return f"{epochs}, {steps} in {took}" + (f"; {reason}" if reason else "")


def _best(trainer: Trainer) -> tuple[tuple[str, float] | None, Path | None]:
    """Return the monitored metric with its best value, and the best checkpoint, as far as there are such."""
    saver: Any = trainer.checkpoint_callback
    path = getattr(saver, "best_model_path", "") or ""
    score = getattr(saver, "best_model_score", None)
    best = (str(saver.monitor), float(score)) if score is not None and saver.monitor else None
    return best, Path(path) if path else None


def _has_test(task: LightningModule, data: LightningDataModule | None) -> bool:
    def overrides(thing: object, base: type, name: str) -> bool:
        return getattr(type(thing), name, None) is not getattr(base, name, None)

    has_loader = overrides(task, LightningModule, "test_dataloader")
    if data is not None:
        has_loader = has_loader or overrides(data, LightningDataModule, "test_dataloader")
    return has_loader and overrides(task, LightningModule, "test_step")


def _merged(per_loader: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Join the results of several loaders; their names differ already, by the engine's suffix."""
    return {name: float(value) for results in per_loader for name, value in results.items()}
