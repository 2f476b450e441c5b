"""Find a learning rate: raise it step by step, and look where the loss falls fastest.

Owns: the sweep, its curve and the suggestion. Does not own: undoing what the steps did (`trial`).

Source: Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017, https://arxiv.org/abs/1506.01186
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..distributed import rank_zero_info, rank_zero_warn
from ..durations import counted
from ..errors import MisconfigurationException, require
from ..fit import fit
from ..hooks import Callback
from ..run import Run
from ..session import configure_optimizers
from ..step import prepare_steps
from .trial import Finder, beside, holders, set_attribute, unchanged

NAMES = ("lr", "learning_rate")
_BETA = 0.98  # of the running mean of the loss
_UNSETTLED = 10  # steps until that mean can be believed


class LRFinder:
    """The curve of a sweep.

    Args:
        mode: "exponential" or "linear".
        lr_min: First learning rate.
        lr_max: Last learning rate.
        num_training: Steps from one to the other.

    Attributes:
        results: "lr" and "loss" (smoothed), one value for each step that was taken.
        parity: Suggest as the reference framework does, by d(loss)/d(lr) in "exponential" mode too, where the noise of
            the smallest rates wins.
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode, self.num_training = mode, num_training
        self.lr_min, self.lr_max = lr_min, lr_max
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}
        self.parity = False

    def lr_of(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        `min` for the first, then `min * (max / min) ** ((step + 1) / n)`, or a straight line.
        """
        if step == 0:
            return self.lr_min
        part = (step + 1) / self.num_training
        if self.mode == "linear":
            return self.lr_min + part * (self.lr_max - self.lr_min)
        return float(self.lr_min * (self.lr_max / self.lr_min) ** part)

    def suggestion(self, skip_begin: int = _UNSETTLED, skip_end: int = 1) -> float | None:
        """Return the learning rate at which the loss falls fastest along the curve; None with too few points.

        Along the axis that the sweep walks evenly: by d(loss)/d(log lr), or by d(loss)/d(lr) in "linear" mode.

        Args:
            skip_begin: Points left out at the beginning, where the running mean is not settled.
            skip_end: Points left out at the end, where the loss already rises.
        """
        index = self._steepest(skip_begin, skip_end)
        return None if index is None else self.results["lr"][index]

    def _steepest(self, skip_begin: int, skip_end: int) -> int | None:
        end = len(self.results["loss"]) - skip_end
        finite = [i for i in range(skip_begin, end) if math.isfinite(self.results["loss"][i])]
        if len(finite) < 2:
            rank_zero_warn(
                f"The sweep has {len(finite)} usable points, too few for a suggestion. Take more steps "
                f"(`num_training`, now {self.num_training}), or a smaller `max_lr`."
            )
            return None
        losses, lrs = (torch.tensor([self.results[key][i] for i in finite]) for key in ("loss", "lr"))
        if self.mode == "exponential" and not self.parity:
            lrs = lrs.log()
        return finite[int(torch.argmin(torch.gradient(losses, spacing=[lrs])[0]))]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw loss over learning rate with matplotlib and return the figure.

        The first steps, of which the running mean is not settled, are left out where enough others are there.

        Args:
            suggest: Mark the suggestion by a red point.
            show: Open a window.
            ax: Axes to draw into; None: a new figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        pyplot = require("matplotlib.pyplot", "plot", "`LRFinder.plot`")
        ax = pyplot.subplots()[1] if ax is None else ax
        first = _UNSETTLED if len(self.results["lr"]) > 3 * _UNSETTLED and not self.parity else 0
        ax.plot(self.results["lr"][first:], self.results["loss"][first:])
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        index = self._steepest(_UNSETTLED, 1) if suggest else None
        if index is not None:
            lr = self.results["lr"][index]
            ax.plot(lr, self.results["loss"][index], "o", color="red", markersize=10, label=f"suggestion: {lr:.3g}")
            ax.legend(frameon=False)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        if show:
            pyplot.show()
        return ax.figure


class LearningRateFinder(Finder):
    """Sweep the learning rate before training, set the suggested one, and train with it.

    The module, its data and all counters are as before the sweep, except for the learning rate: the attribute, and
    optimizers and schedulers, which are made again. In the middle of training call `lr_find` from a hook: then the
    optimizers' and schedulers' rates are scaled.

    Args:
        min_lr: First learning rate.
        max_lr: Last learning rate.
        num_training_steps: Optimizer steps of the sweep, a number or "100ba".
        mode: "exponential" or "linear".
        early_stop_threshold: Stop when the smoothed loss is worse than the best by this factor; None: never.
        update_attr: Set the suggestion; False: only keep the curve.
        attr_name: Attribute or hyper-parameter to set; "": `lr` or `learning_rate`.

    Attributes:
        optimal_lr: The curve, after the sweep.

    Raises:
        MisconfigurationException: An unknown mode; in a run: several optimizers, or no such attribute.
    """

    SUPPORTED_MODES = ("exponential", "linear")

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int | str = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        super().__init__(mode)
        steps = counted(num_training_steps, "num_training_steps", "batches")
        if not 0 < min_lr < max_lr or steps < 1:
            raise MisconfigurationException(
                f"`min_lr={min_lr}, max_lr={max_lr}`, {steps} steps: accepted are 0 < min_lr < max_lr and "
                "at least one step, e.g. 1e-6 to 1 in 100 steps."
            )
        self.optimal_lr: LRFinder | None = None
        self._sweep = (self._mode, min_lr, max_lr, steps)
        self._early_stop_threshold = early_stop_threshold
        self._update_attr = update_attr
        self._attr_name = attr_name
        self._is_before_training = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Sweep, unless a run is continued: it goes on with the learning rate it had."""
        if trainer.ckpt_path is not None:
            return
        self._is_before_training = True
        try:
            self.lr_find(trainer, pl_module)
        finally:
            self._is_before_training = False

    def lr_find(self, trainer: Any, pl_module: Any) -> None:
        """Sweep now, in `fit`.

        Runs on every rank; rank 0's loss decides (collective).
        """
        only_tried = "`fast_dev_run` tries the code, not learning rates: the sweep is left out."
        self.find(trainer, self._find, only_tried)

    def _find(self, run: Run) -> None:
        trainer = run.trainer
        if len(run.optimizers) != 1:
            raise MisconfigurationException(
                "The learning rate finder works with one optimizer; `configure_optimizers` gave "
                f"{len(run.optimizers)}. Sweep by hand, or with a module that trains one of them."
            )
        name = self._attribute(run) if self._update_attr else ""
        curve = LRFinder(*self._sweep)
        curve.parity = trainer.parity
        sweep = _Sweep(curve, self._early_stop_threshold)
        limits = {"max_steps": curve.num_training}
        if trainer.parity:  # where a short training ends the sweep
            limits["max_epochs"] = trainer.max_epochs
        with unchanged(run), beside(run, sweep, **limits) as trial:
            fit(trial)
        curve.results = trainer.strategy.broadcast(curve.results)
        self.optimal_lr = curve
        suggested = curve.suggestion() if self._update_attr else None
        if suggested is not None:
            set_attribute(run, name, suggested)
            if self._is_before_training:
                configure_optimizers(run)
                prepare_steps(run)
            else:
                _scale_rates(run, suggested)
            rank_zero_info("learning rate %.3g, from a sweep of %d steps", suggested, len(curve.results["lr"]))

    def _attribute(self, run: Any) -> str:
        wanted = (self._attr_name,) if self._attr_name else NAMES
        for name in wanted:
            if holders(run, name):
                return name
        raise MisconfigurationException(
            f"The learning rate found has to be kept somewhere: neither `{type(run.module).__name__}` nor its hparams "
            f"has {' or '.join(f'`{name}`' for name in wanted)}. Add `self.lr`, which `configure_optimizers` uses, "
            "name another attribute (`attr_name=`), or pass `update_attr=False`."
        )


class _Sweep(Callback):
    """Sets the learning rate before each batch and notes the loss after each step."""

    def __init__(self, curve: LRFinder, threshold: float | None) -> None:
        super().__init__()
        self._curve = curve
        self._threshold = threshold
        self._mean = 0.0
        self._best = math.inf
        self._steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the step that this batch belongs to."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._curve.lr_of(self._steps)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the loss, if this batch ended with a step; stop when it diverges."""
        if trainer.global_step == self._steps:
            return
        lr, self._steps = self._curve.lr_of(self._steps), trainer.global_step
        self._curve.results["lr"].append(lr)
        loss = float(outputs["loss"]) if outputs else math.nan  # sync: a sweep reads every loss
        if outputs:
            self._mean = _BETA * self._mean + (1 - _BETA) * loss
            loss = self._mean / (1 - _BETA ** (self._steps + 1))
        self._curve.results["loss"].append(loss)
        diverges = self._threshold is not None and self._steps > 1 and loss > self._threshold * self._best
        hopeless = not trainer.parity and bool(outputs) and not math.isfinite(loss)
        if trainer.strategy.broadcast(diverges or hopeless):
            trainer.should_stop = True
        if loss < self._best or self._steps == 1:
            self._best = loss


def _scale_rates(run: Any, lr: float) -> None:
    """Scale what the optimizer and its schedulers have, in the middle of training, where they keep their state."""
    optimizer = run.optimizers[0]
    factor = lr / optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                group[key] *= factor
    for config in run.schedulers:
        if hasattr(config.scheduler, "base_lrs"):
            config.scheduler.base_lrs = [base * factor for base in config.scheduler.base_lrs]
