"""Search hyper-parameters: one training after another, each with other values, the hopeless ones ended early.

    outcome = sweep(lambda chosen: load(overrides=chosen), spaces(["task.lr=log:1e-4..1e-1"]), trials=20)

Every trial is an ordinary run with a folder of its own; the test set is left alone.

Owns: what may vary, and what a trial is. Does not own: a training (`workflow`), and which values are tried and which
trials are ended (Optuna: TPE, https://arxiv.org/abs/2304.11127, and the median of earlier trials).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .build import complete, reporters, sweep_tracker
from .config import Config
from .engine import Callback, LightningModule, Trainer
from .engine.errors import require
from .engine.loggers import MLFlowLogger
from .sources import ProjectError
from .workflow import fit

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ACCEPTED = "Accepted: task.lr=log:1e-4..1e-1, task.dropout=0..0.5, task.channels=8..64, data.batch_size=16,32,64."


@dataclass(frozen=True)
class Space:
    """What one setting may be: one of `choices`, or a number from `low` to `high`, both included."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False

    @property
    def example(self) -> str:
        """One of the values, as one would type it."""
        return self.choices[0] if self.choices else f"{self.low:g}"

    def __str__(self) -> str:
        scale = "log:" if self.is_log else ""
        return ",".join(self.choices) or f"{scale}{self.low:g}..{self.high:g}"

    def suggest(self, trial: Any) -> Any:
        """Return a value that Optuna chooses."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.is_whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.is_log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.is_log)


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        chosen: Setting to value.
        value: The monitored metric at its best; None: the training failed before it had one.
        ending: `finished`, `pruned`, or the error in words.
        folder: The run's; None when it could not begin.
    """

    chosen: Mapping[str, Any]
    value: float | None
    ending: str
    folder: Path | None


@dataclass(frozen=True)
class Sweep:
    """What came out: the trials, the best first, and the file that lists them."""

    metric: str
    trials: Sequence[Trial]
    file: Path


class _Pruning(Callback):
    """Tell Optuna the monitored metric after every epoch; end the training when it says that it is hopeless.

    In MLflow the trial is shown below the sweep.
    """

    def __init__(self, trial: Any, metric: str, parent: tuple[str, str] | None) -> None:
        self.trial, self.metric, self.parent = trial, metric, parent
        self.is_pruned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the parent, before anything is logged."""
        for logger in trainer.loggers:
            if isinstance(logger, MLFlowLogger):
                logger.parent = self.parent

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report and ask; on every rank the values are the same."""
        value = trainer.callback_metrics.get(self.metric)
        if value is not None:
            self.trial.report(float(value), trainer.current_epoch)
            self.is_pruned = trainer.should_stop = self.trial.should_prune() or trainer.should_stop


def spaces(texts: Sequence[str]) -> list[Space]:
    """Read what may vary: `task.lr=log:1e-4..1e-1`, `task.channels=8..64`, `data.batch_size=16,32,64`.

    Raises:
        ProjectError: A text cannot be understood, or a setting stands twice.
    """
    found = [_space(text) for text in texts]
    twice = sorted({space.key for space in found if [other.key for other in found].count(space.key) > 1})
    if twice or not found:
        said = f"`{twice[0]}` varies twice." if twice else "Nothing varies."
        raise ProjectError(f"{said} Give each setting once: --vary KEY=VALUES. {_ACCEPTED}", 2)
    return found


def _space(text: str) -> Space:
    key, _, values = text.partition("=")
    found = re.fullmatch(rf"(log:)?({_NUMBER})\.\.({_NUMBER})", values)
    if found and key:
        low, high = float(found[2]), float(found[3])
        if low < high and (low > 0 or not found[1]):
            is_whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (found[2], found[3]))
            return Space(key, low=low, high=high, is_log=bool(found[1]), is_whole=is_whole)
    choices = tuple(part.strip() for part in values.split(","))
    if found or not key or ".." in values or len(choices) < 2 or "" in choices:
        raise ProjectError(f"`--vary {text}` cannot be understood. {_ACCEPTED} A log scale begins above 0.", 2)
    return Space(key, choices)


def sweep(
    configure: Callable[[Sequence[str]], Config],
    varied: Sequence[Space],
    trials: int = 20,
    arguments: Sequence[str] = (),
) -> Sweep:
    """Train `trials` times and list what came out; Ctrl-C ends it after the trial at work, with what there is.

    Args:
        configure: Takes overrides, returns the configuration of a trial.
        varied: From `spaces`.
        trials: How many trainings.
        arguments: The command line, for the record.

    Raises:
        ProjectError: The configuration is wrong, or no metric is monitored.
    """
    optuna = require("optuna", "sweep", "`sweep`")
    config = complete(configure([f"{space.key}={space.example}" for space in varied]))
    metric, mode = config.monitor.metric, config.monitor.mode or "min"
    if metric is None:
        raise ProjectError(
            "A sweep needs a metric to compare: set `monitor` in the task, or -o monitor.metric=NAME.", 2
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=config.seed)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
    done: list[Trial] = []
    name = f"{datetime.now():%Y%m%d-%H%M%S}-sweep"
    with ExitStack() as stack:
        track = stack.enter_context(_tracked(config, name, varied))
        told = [stack.enter_context(one.sweep(config.experiment, mode, metric)) for one in reporters(config)]
        for number in range(trials):
            asked = study.ask()
            chosen = {space.key: space.suggest(asked) for space in varied}
            pruning = _Pruning(asked, metric, (track.key, name) if track else None)
            result, interrupted = _train(configure, chosen, f"trial-{number}", pruning, arguments)
            done.append(result)
            if track and result.value is not None:
                track.log_metrics({metric: result.value}, number)
            states = optuna.trial.TrialState
            state = states.FAIL if result.value is None else states.PRUNED if result.ending == "pruned" else None
            study.tell(asked, None if state else result.value, state=state)
            for trials_told in told:
                trials_told.append((" ".join(f"{key}={_short(value)}" for key, value in chosen.items()), result.value))
            if interrupted:
                break
        done.sort(key=lambda trial: _rank(trial, mode))
        file = _write(done, metric, config)
        if track:
            track.log_artifact(file)
    return Sweep(metric, done, file)


@contextmanager
def _tracked(config: Config, name: str, varied: Sequence[Space]) -> Iterator[MLFlowLogger | None]:
    """Make one run of the whole sweep in MLflow."""
    logger = sweep_tracker(config, name)
    if logger is None:
        yield None
        return
    logger.log_hyperparams({space.key: str(space) for space in varied})
    status = "failed"
    try:
        yield logger
        status = "success"
    finally:
        logger.finalize(status)
        with suppress(OSError):  # it held what waited
            (config.runs / config.experiment / name).rmdir()


def _rank(trial: Trial, mode: str) -> float:
    if trial.value is None:
        return float("inf")
    return -trial.value if mode == "max" else trial.value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _train(
    configure: Callable[[Sequence[str]], Config],
    chosen: Mapping[str, Any],
    name: str,
    pruning: _Pruning,
    arguments: Sequence[str],
) -> tuple[Trial, bool]:
    """Train once; return the trial, and whether it was stopped by hand."""
    overrides = [*(f"{key}={value}" for key, value in chosen.items()), f"name={name}", "test_after_fit=false"]
    try:
        outcome = fit(configure(overrides), None, arguments, callbacks=[pruning])
    except ProjectError as error:
        return Trial(chosen, None, str(error), None), False
    except Exception as error:  # one trial that breaks, for want of memory perhaps, does not end the others
        return Trial(chosen, None, f"{type(error).__name__}: {error}", None), False
    value = outcome.best[1] if outcome.best else None
    ending = "stopped" if outcome.interrupted else "pruned" if pruning.is_pruned else "finished"
    return Trial(chosen, value, ending, outcome.folder), outcome.interrupted


def _write(trials: Sequence[Trial], metric: str, config: Config) -> Path:
    """Write the table of trials beside their runs, the best first."""
    folders = [trial.folder.name for trial in trials if trial.folder is not None]
    path = config.runs / config.experiment / f"{min(folders, default='')[:15] or 'failed'}-sweep.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        keys = list(trials[0].chosen) if trials else []
        writer.writerow([*keys, metric, "ending", "run"])
        for trial in trials:
            run = trial.folder.name if trial.folder is not None else ""
            writer.writerow([*(trial.chosen[key] for key in keys), trial.value, trial.ending, run])
    return path
