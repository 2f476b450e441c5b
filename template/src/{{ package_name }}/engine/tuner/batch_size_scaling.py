"""Find the largest batch that fits into memory.

Owns: the order of sizes, how a size gets to the loaders, what counts as out of memory.
Does not own: undoing what the steps did (`trial`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from ..data import leaves, mapped
from ..distributed import rank_zero_info, rank_zero_warn
from ..durations import counted
from ..errors import MisconfigurationException
from ..evaluate import evaluation
from ..fit import fit
from ..loading import has_loader, load_loaders, load_training, loader_source, remake
from ..predict import predict
from ..run import Run
from .trial import Finder, beside, holders, set_attribute, unchanged

_LOADERS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "resource_exhausted")


class BatchSizeFinder(Finder):
    """Try batch sizes before training (or validation, test, prediction), set the largest that fits, and go on with it.

    The loaders must come from a module or data module that reads the attribute `batch_arg_name`, or be passed in: then
    they are made again with other batch sizes.

    Args:
        mode: "power": double until memory is full; "binsearch": then halve the interval until it is exact.
        steps_per_trial: Optimizer steps (or batches of evaluation) per size, a number or "3ba".
        init_val: First size.
        max_trials: Sizes to try at most.
        batch_arg_name: Attribute or hyper-parameter that holds the size.
        margin: Part taken off the size that "binsearch" finds, from 0.0 to 1.0.
        max_val: Largest size to try; the number of rows is another limit.
        effective_batch_size: Rows of each optimizer step, which stay as they are: the largest part of it that fits is
            set as batch size, and `trainer.accumulate_grad_batches` so that the parts add up. None: no accumulation.

    Attributes:
        optimal_batch_size: The size found; before that `init_val`.

    Raises:
        MisconfigurationException: A value out of range; in a run: several processes, or loaders that do not follow.
    """

    SUPPORTED_MODES = ("power", "binsearch")

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int | str = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
        effective_batch_size: int | None = None,
    ) -> None:
        super().__init__(mode)
        steps = counted(steps_per_trial, "steps_per_trial", "batches")
        numbers = (steps, init_val, max_trials, max_val, effective_batch_size or 1)
        if not all(isinstance(number, int) and number >= 1 for number in numbers) or not 0.0 <= margin < 1.0:
            raise MisconfigurationException(
                f"`margin={margin}, steps_per_trial={steps}, init_val={init_val!r}, max_trials={max_trials!r}, "
                f"max_val={max_val!r}, effective_batch_size={effective_batch_size!r}`: accepted are a margin from 0.0 "
                "to below 1.0 and whole numbers from 1."
            )
        self.optimal_batch_size: int | None = init_val
        self._steps_per_trial = steps
        self._init_val = init_val
        self._max_trials = max_trials
        self._name = batch_arg_name
        self._margin = margin
        self._max_val = min(max_val, effective_batch_size or max_val)
        self._effective = effective_batch_size
        self._seen: tuple[int, list[Any]] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Search before training, test or prediction."""
        self.scale_batch_size(trainer, pl_module)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Search before a validation of its own, not inside `fit`."""
        if trainer.state.fn == "validate":
            self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: Any, pl_module: Any) -> None:
        """Search now; the run goes on with the size that was found."""
        only_tried = "`fast_dev_run` tries the code, not memory: the search for a batch size is left out."
        self.find(trainer, self._find, only_tried)

    def _find(self, run: Run) -> None:
        trainer = run.trainer
        self._check(run)
        search = power if self._mode == "power" else binsearch
        self._seen = None
        with unchanged(run):
            limit = min(self._max_val, _rows(run))
            if trainer.parity:  # the reference's last size is the first doubling that is not below a limit
                limit = next(size for n in range(64) if (size := self._init_val * 2**n) >= limit)
                limit = min(limit, self._max_val) if self._mode == "binsearch" else limit
            best = search(lambda size: self._fits(run, size), min(self._init_val, limit), limit, self._max_trials)
        if best.size == limit < self._max_val:
            rank_zero_warn(
                f"Batch size {limit} is the whole data set, before memory is full. Smaller ones often train better."
            )
        if self._mode == "binsearch" and (best.failed or trainer.parity):
            best = best._replace(size=max(1, int(best.size * (1 - self._margin))))
        if self._effective is not None and run.state.fn == "fit":
            best = best._replace(size=max(n for n in range(1, best.size + 1) if self._effective % n == 0))
            trainer.accumulate_grad_batches = self._effective // best.size
        self.optimal_batch_size = best.size
        set_attribute(run, self._name, best.size)
        _resize(run, best.size)
        rank_zero_info("batch size %d, after %d trials", best.size, best.trials)

    def _check(self, run: Run) -> None:
        if run.strategy.is_distributed:
            raise MisconfigurationException(
                f"The batch size cannot be searched by {run.strategy.world_size} processes: one that is out of memory "
                "would leave the others waiting. Search with `devices=1`; the size is that of each device."
            )
        stage = _LOADERS[str(run.state.fn)]
        if not has_loader(run, stage):
            raise MisconfigurationException(
                f"The search for a batch size needs data: `{type(run.module).__name__}` has no `{stage}_dataloader`, "
                "and no loader was passed."
            )
        if stage not in run.trainer.given_loaders and not holders(run, self._name):
            raise MisconfigurationException(
                f"Neither `{type(run.module).__name__}` nor the data module nor their hparams has `{self._name}`. Add "
                f"`self.{self._name}`, which `{stage}_dataloader` uses, or name another (`batch_arg_name=`)."
            )

    def _fits(self, run: Run, size: int) -> bool:
        """Return whether a few steps with this batch size stay within memory."""
        set_attribute(run, self._name, size)
        steps = self._steps_per_trial
        stage = _LOADERS[str(run.state.fn)]
        loaders = loader_source(run, stage)
        if stage in run.trainer.given_loaders:
            loaders = _resized(loaders, size)
        else:
            self._check_that_loaders_follow(size, loaders)
        settings: dict[str, Any] = {"given_loaders": {**run.trainer.given_loaders, stage: loaders}}
        settings |= {"max_steps": steps} if stage == "train" else {f"limit_{stage}_batches": steps}
        try:
            with beside(run, **settings) as trial:
                if stage == "train":
                    fit(trial)
                elif stage == "predict":
                    predict(trial, keep=False)
                else:
                    evaluation(trial)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            run.module.zero_grad(set_to_none=True)
        # Outside of the handler, where the traceback does not hold the batch any more.
        gc.collect()
        if run.strategy.root_device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _check_that_loaders_follow(self, size: int, nest: Any) -> None:
        """Refuse loaders that have the same batch size whatever the attribute says."""
        sizes = [loader.batch_size for loader in leaves(nest) if isinstance(loader, DataLoader)]
        before, self._seen = self._seen, (size, sizes)
        if before is not None and sizes and before[0] != size and before[1] == sizes:
            raise MisconfigurationException(
                f"With `{self._name}={size}` the loaders have the same batch sizes {sizes} as with {before[0]}. Make "
                f"them from the attribute, `DataLoader(..., batch_size=self.{self._name})`, or pass them to the call."
            )


class Found(NamedTuple):
    """The outcome of a search: the largest size that fits, how many were tried, whether any did not fit."""

    size: int
    trials: int
    failed: bool


def binsearch(fits: Callable[[int], bool], first: int, limit: int, max_trials: int, exact: bool = True) -> Found:
    """Double the size until it does not fit, then halve the interval; halve it as well if not even the first one fits.

    Args:
        fits: Tries a size.
        first: Where to begin.
        limit: Largest size.
        max_trials: Sizes to try.
        exact: Halve until the size is exact, not only until one fits.

    Raises:
        MisconfigurationException: Nothing fits.
    """
    size, good, bad, trials = first, 0, 0, 0
    while trials < max_trials:
        trials += 1
        if fits(size):
            good = size
        else:
            bad = size
        if (bad and (bad - good <= 1 or (good and not exact))) or (not bad and size >= limit):
            break
        size = (good + bad) // 2 if bad else min(2 * size, limit)
    if not good:
        raise MisconfigurationException(
            f"No batch size fits into memory ({trials} tried). Make the model or the inputs smaller, use a lower "
            "precision (`Trainer(precision='bf16-mixed')`), or let more sizes be tried (`max_trials`)."
        )
    return Found(good, trials, bool(bad))


power = partial(binsearch, exact=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, CUDA, MPS, XLA or the host says that memory is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _rows(run: Run) -> int:
    """Return the number of rows of the largest data set; a size beyond it would change nothing."""
    nest = loader_source(run, _LOADERS[str(run.state.fn)])
    sizes = [len(loader.dataset) for loader in leaves(nest) if hasattr(getattr(loader, "dataset", None), "__len__")]
    return max(sizes, default=2**31)


def _resized(nest: Any, size: int) -> Any:
    """Return loaders that were passed in, made again with another batch size."""
    fixed = [loader for loader in leaves(nest) if not isinstance(loader, DataLoader) or loader.batch_size is None]
    if fixed:
        raise MisconfigurationException(
            f"A loader of type `{type(fixed[0]).__name__}` cannot be made again with another batch size. Pass a "
            "`DataLoader(dataset, batch_size=...)`, or let the module make its loaders from an attribute."
        )
    return mapped(nest, lambda loader: remake(loader, batch_size=size))


def _resize(run: Run, size: int) -> None:
    """Let the run go on with loaders of this size."""
    trainer, stage = run.trainer, _LOADERS[str(run.state.fn)]
    if stage in trainer.given_loaders:
        trainer.given_loaders = {**trainer.given_loaders, stage: _resized(trainer.given_loaders[stage], size)}
    if stage == "train":
        load_training(run)
        run.val = None
        return
    loaders = load_loaders(run, stage, f"limit_{stage}_batches")
    if loaders is not None and run.evaluation is not None:
        # In place: the loop that called this hook holds these lists.
        run.evaluation.loaders[:], run.evaluation.limits[:] = loaders.loaders, loaders.limits
