"""Prediction.

Owns: the loop of `predict` and its return value. Does not own: writing predictions to disk (`BasePredictionWriter`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from .evaluate import evaluation_mode, step_function
from .loading import load_loaders
from .run import Run
from .states import RunningStage
from .transfer import apply_to_collection

_NONE = object()


def predict(run: Run, keep: bool) -> list[Any]:
    """Run `predict_step` over all loaders.

    Args:
        run: The run in progress.
        keep: Collect the outputs; False when they are written elsewhere.

    Returns:
        Outputs by batch, on the host, those of all processes; with several loaders one such list for each.
    """
    outputs: list[list[Any]] = []
    for dataloader_idx, output in predictions(run):
        while len(outputs) <= dataloader_idx:
            outputs.append([])
        if keep:
            outputs[dataloader_idx].append(output)
    if keep and run.strategy.is_distributed and not run.parity:
        outputs = in_turn(run.strategy.gather_objects(outputs))
    several = run.evaluation is not None and len(run.evaluation.loaders) > 1
    run.trainer.predictions = outputs if several else outputs[0] if outputs else []
    return run.trainer.predictions if keep else []


def in_turn(ranks: list[list[list[Any]]]) -> list[list[Any]]:
    """Return the outputs of all ranks by loader, in the order of one process: ranks take batches in turn."""
    loaders = [[rank[index] if index < len(rank) else [] for rank in ranks] for index in range(max(map(len, ranks)))]
    return [
        [row for rows in zip_longest(*parts, fillvalue=_NONE) for row in rows if row is not _NONE] for parts in loaders
    ]


def predictions(run: Run) -> Iterator[tuple[int, Any]]:
    """Yield (dataloader_idx, output on the host) batch by batch; nothing is kept."""
    run.enter(RunningStage.PREDICTING, None)
    run.evaluation = load_loaders(run, "predict", "limit_predict_batches")
    if run.evaluation is None:
        return
    no_grad = torch.inference_mode() if run.trainer.inference_mode else torch.no_grad()
    several = len(run.evaluation.loaders) > 1
    with no_grad, evaluation_mode(run, "predict", run.evaluation):
        run.hooks.call("on_predict_start")
        run.hooks.call("on_predict_epoch_start")
        run.trainer.epoch_batch_indices = []
        step = step_function(run, "predict_step", several)
        for index, (loader, limit) in enumerate(zip(run.evaluation.loaders, run.evaluation.limits, strict=True)):
            run.trainer.epoch_batch_indices.append([])
            for output in predict_loader(run, loader, limit, (index,) if several else (), step):
                yield index, output
        run.hooks.call("on_predict_epoch_end")
        run.hooks.call("on_predict_end")


def predict_loader(run: Run, loader: Any, limit: float, rest: tuple[int, ...], step: Any) -> Iterator[Any]:
    """Yield the outputs of one loader; `rest` is its index when there are several."""
    trainer = run.trainer
    hook_start, hook_end = run.hooks["on_predict_batch_start"], run.hooks["on_predict_batch_end"]
    rows = row_indices(loader)
    for batch_idx, batch in enumerate(run.hooks.waiting("predict_dataloader_next", loader) if limit else ()):
        batch = run.transfer(batch, rest[0] if rest else 0)
        trainer.current_batch_indices = next(rows, [])
        trainer.epoch_batch_indices[-1].append(trainer.current_batch_indices)
        if hook_start is not None:
            hook_start(batch, batch_idx, *rest)
        output = step(batch, batch_idx, *rest)
        if hook_end is not None:
            hook_end(output, batch, batch_idx, *rest)
        yield to_host(output)
        if batch_idx + 1 >= limit:
            return


def row_indices(loader: Any) -> Iterator[list[int]]:
    """Yield the row numbers of each batch where the order is known without asking the loader: unshuffled ones."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    ordered = isinstance(loader, DataLoader) and isinstance(getattr(batch_sampler, "sampler", None), SequentialSampler)
    return iter(batch_sampler) if ordered and batch_sampler is not None else iter(())


def to_host(output: Any) -> Any:
    """Return a nest with its tensors on the host."""
    return apply_to_collection(output, lambda item: isinstance(item, Tensor), lambda tensor: tensor.cpu())
