"""The epoch's metrics of all processes as one.

Owns: reducing what was logged with `sync_dist=True`, and saying which ranks logged something else. Does not own: what a
process keeps of its own values (`results`).

Values go as sums and counts, so that ranks may have different numbers of rows. A rank without any batch of an
evaluation loader takes part with nothing, and shows afterwards what the others show: a monitor finds its metric on
every rank.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .distributed import rank_zero_warn
from .errors import MisconfigurationException
from .results import Record, Results
from .strategies.base import Strategy

_NEUTRAL = {"mean": 0.0, "sum": 0.0, "max": -float("inf"), "min": float("inf")}


def reduce_epoch(results: Results, strategy: Strategy, module: Any) -> None:
    """Reduce the epoch's metrics over ranks: two or three small messages in all. A collective.

    Raises:
        MisconfigurationException: Ranks logged different names with `sync_dist=True`.
    """
    if not results.training:
        _warn_of_own(results, strategy.world_size)
    shared, metrics = _shared(results), _metrics(results)
    signature = zlib.crc32("\n".join(map(_label, [*shared, *metrics])).encode())
    most, least, somebody_is_empty = strategy.all_max([signature, -signature, results.is_empty])
    if most != -least or somebody_is_empty:
        _even_out(results, strategy, module)
        shared, metrics = _shared(results), _metrics(results)
    added = [record for record in shared if record.reduction in ("mean", "sum")]
    extreme = [record for record in shared if record.reduction not in ("mean", "sum")]
    if added:
        device = strategy.root_device
        totals = torch.stack([_total(record, device) for record in added])
        weights = torch.tensor([record.weight for record in added], dtype=torch.float64, device=device)
        totals, weights = strategy.reduce(torch.stack([totals, weights]), reduce_op="sum")
        for record, total, weight in zip(added, totals, weights, strict=True):
            _set(record, total / weight if record.reduction == "mean" else total)
    if extreme:
        sign = [-1.0 if record.reduction == "min" else 1.0 for record in extreme]
        signs = torch.tensor(sign, dtype=torch.float64, device=strategy.root_device)
        highest = strategy.reduce(
            signs * torch.stack([_total(record, strategy.root_device) for record in extreme]), reduce_op="max"
        )
        for record, value in zip(extreme, signs * highest, strict=True):
            _set(record, value)
    for record in metrics:
        for part in record.metric.modules():  # what torchmetrics keeps would let a rank without new values stay away
            part._computed = None
        record.compute()  # here, where every rank comes by: later a bar may ask for it on rank 0 alone


def _warn_of_own(results: Results, processes: int) -> None:
    records = [record for record in results.records.values() if record.metric is None and record.on_epoch]
    own = [record.name for record in records if not record.options.sync_dist and not record.options.rank_zero_only]
    if own:
        rank_zero_warn(
            f"{', '.join(map(repr, own))}: each of the {processes} processes shows the value of its own rows only: "
            "logged without `sync_dist`. Say `self.log(..., sync_dist=True)` for that of all rows."
        )


def _shared(results: Results) -> list[Record]:
    records = [r for r in _due(results) if r.metric is None and r.options.sync_dist and not r.options.rank_zero_only]
    for record in records:
        record.fold()
    return records


def _metrics(results: Results) -> list[Record]:
    return [record for record in _due(results) if record.metric is not None]


def _due(results: Results) -> list[Record]:
    """Return the records whose value of the epoch is still to be computed, in the same order on every rank."""
    return [r for r in results.records.values() if r.on_epoch and not r.is_reset and r.computed is None]


def _label(record: Record) -> str:
    return f"{record.name}{record.suffix} ({record.reduction})"


def _total(record: Record, device: torch.device) -> Tensor:
    total = _NEUTRAL[record.reduction] if record.total is None else record.total
    total = total.detach() if isinstance(total, Tensor) else total
    return torch.as_tensor(total, dtype=torch.float64, device=device)


def _set(record: Record, value: Tensor) -> None:
    record.computed = value if record.is_double else value.float()


def _even_out(results: Results, strategy: Strategy, module: Any) -> None:
    """Give ranks without a batch the records of the others; refuse other differences."""
    records = [] if results.is_empty else list(results.valid())
    mine = [_label(record) for record in [*_shared(results), *_metrics(results)]]
    told = strategy.gather_objects((results.is_empty, mine, _descriptions(results, records, module)))
    names = {rank: labels for rank, (is_empty, labels, _) in enumerate(told) if not is_empty}
    if any(labels != next(iter(names.values())) for labels in names.values()):
        raise MisconfigurationException(_difference(names))
    if not results.is_empty or not names:
        return
    metrics = dict(module.named_modules())
    for key, record, metric in told[min(names)][2]:
        record.metric = metrics[metric] if metric is not None else None
        results.records[key] = record


def _descriptions(results: Results, records: list[Record], module: Any) -> list[tuple[Any, Record, str | None]]:
    """Return what a rank needs to know of records: those that are not shared come with their value."""
    keys = {id(record): key for key, record in results.records.items()}
    names = {id(child): name for name, child in module.named_modules()}
    together = {id(record) for record in [*_shared(results), *_metrics(results)]}
    found = []
    for record in records:
        if record.options.rank_zero_only:
            continue
        value = None if id(record) in together or not record.on_epoch else record.compute()
        empty = replace(record, options=record.options._replace(sync_dist_group=None), metric=None, sync=None)
        empty.values, empty.weights, empty.total, empty.weight, empty.step_value = [], [], None, 0.0, None
        empty.computed = value.cpu() if isinstance(value, Tensor) else value
        found.append((keys[id(record)], empty, names.get(id(record.metric)) if record.metric is not None else None))
    return found


def _difference(names: dict[int, list[str]]) -> str:
    everywhere = set.intersection(*(set(labels) for labels in names.values()))
    parts = [
        f"rank {rank} has {', '.join(f'`{label}`' for label in labels if label not in everywhere)}, others do not"
        for rank, labels in names.items()
        if set(labels) - everywhere
    ]
    found = "; ".join(parts) or "the same names, but in another order"
    return (
        f"Ranks logged different metrics with `sync_dist=True` (or torchmetrics objects): {found}. Every rank must log "
        "the same ones in the same order: log a neutral value where there is none, or leave `sync_dist` out."
    )
