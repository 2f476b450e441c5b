"""How fast the run is: batches, samples, tokens and floating point operations per second, and peak memory.

Owns: counting and timing. Does not own: the FLOPs of a batch, which the module says (`flops_per_batch`; the totals of
`summary.ModelSummary` help to find them).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..durations import counted
from ..errors import MisconfigurationException
from ..hooks import Callback
from ..transfer import find_batch_size

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

# Dense peak operations per second of (16-bit, 32-bit) matrix products, from NVIDIA's data sheets; the first that fits.
PEAK_FLOPS = {
    "b200": (2250e12, 75e12),
    "h200": (989e12, 67e12),
    "h100 pcie": (756e12, 51e12),
    "h100": (989e12, 67e12),
    "gh200": (989e12, 67e12),
    "a100": (312e12, 19.5e12),
    "l40s": (362e12, 91.6e12),
    "l4": (121e12, 30.3e12),
    "a10g": (70e12, 35e12),
    "a10": (125e12, 31.2e12),
    "v100": (125e12, 15.7e12),
    "t4": (65e12, 8.1e12),
    "4090": (165e12, 82.6e12),
    "3090": (71e12, 35.6e12),
}


class Point(NamedTuple):
    """Counts at one moment at which the device had finished its work."""

    time_s: float
    batches: int
    samples: int
    items: int
    flops: float


class ThroughputMonitor(Callback):
    """Log how fast training is, and tell the loggers how fast validation, test and prediction are.

    Names, after "train/", "validate/", "test/" or "predict/": `time` (seconds), `batches`, `samples`,
    `device/batches_per_sec`, `device/samples_per_sec`, `device/items_per_sec` (with `length_fn`, e.g. tokens),
    `device/flops_per_sec` (with `pl_module.flops_per_batch`), `device/mfu` (that over the device's peak) and
    `device/peak_memory_gib`; with several processes also without `device/`, for all of them together.

    The device is waited for when loggers are due and at no other time. Validation inside of `fit` is not counted, nor
    is the first batch, which may compile. The progress bar shows the latest samples and items per second, MFU and peak
    memory beside the metrics.

    Args:
        batch_size_fn: Samples of a batch; None: the size of the first dimension of its first tensor.
        length_fn: Items (tokens) of a batch.
        item_name: What the progress bar calls them.
        window_size: Batches (or "50ba") over which the rates are taken, at least from one logging to the next.
        available_flops: Peak operations per second of one device; None: looked up for common GPUs.
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int] | None = None,
        length_fn: Callable[[Any], int] | None = None,
        *,
        item_name: str = "tokens",
        window_size: int | str = 100,
        available_flops: float | None = None,
    ) -> None:
        self.batch_size_fn = batch_size_fn or _first_dimension
        self.length_fn = length_fn
        self.item_name = item_name
        self.window_size = counted(window_size, "ThroughputMonitor(window_size", "batches")
        self.available_flops = available_flops
        self._now = Point(0.0, 0, 0, 0, 0.0)
        self._points: deque[Point] = deque()
        self._outer: tuple[Point, deque[Point], float] | None = None
        self._latest: dict[str, float] = {}

    @property
    def bar_metrics(self) -> dict[str, str]:
        """What a progress bar shows of the latest rates: short names, and numbers as text."""
        latest = self._latest
        rates = {"samples/s": "samples_per_sec", f"{self.item_name}/s": "items_per_sec"}
        columns = {short: latest.get(name, latest.get(f"device/{name}")) for short, name in rates.items()}
        shown = {short: abbreviated(rate) for short, rate in columns.items() if rate}
        if "device/mfu" in latest:
            shown["MFU"] = f"{latest['device/mfu']:.0%}"
        if "device/peak_memory_gib" in latest:
            shown["memory"] = f"{latest['device/peak_memory_gib']:.1f}GiB"
        return shown

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the device's peak."""
        if self.available_flops is None and trainer.strategy.root_device.type == "cuda":
            self.available_flops = peak_flops(
                torch.cuda.get_device_name(trainer.strategy.root_device), half="16" in str(trainer.precision)
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._now, self._points = Point(0.0, 0, 0, 0, 0.0), deque()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    on_test_start = on_predict_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log when loggers are due."""
        self._count(pl_module, batch)
        if not self._points:
            self._mark(trainer)  # what came before is not counted: compilation, workers that start
        elif trainer.log_due:
            self.log_dict(self._rates(trainer), on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put training aside."""
        self._outer = (self._now, self._points, time.perf_counter()) if str(trainer.state.fn) == "fit" else None
        ThroughputMonitor.on_train_start(self, trainer, pl_module)  # not a subclass's

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the rates of the whole validation, test or prediction to the loggers.

        Without `log`: what is logged in an evaluation stands in its table of results.
        """
        if not trainer.sanity_checking and self._points and self._now.batches > self._points[0].batches:
            trainer.tell_loggers("log_metrics", self._rates(trainer), step=trainer.log_step)

    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with training, as if no time had gone by."""
        if self._outer is not None:
            self._now, points, since = self._outer
            gone = time.perf_counter() - since
            self._points = deque(point._replace(time_s=point.time_s + gone) for point in points)
            self._outer = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self._count(pl_module, batch)
        if not self._points:
            self._mark(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _count(self, pl_module: LightningModule, batch: Any) -> None:
        now = self._now
        items = self.length_fn(batch) if self.length_fn is not None else 0
        flops = float(getattr(pl_module, "flops_per_batch", 0) or 0)
        size = self.batch_size_fn(batch)
        self._now = Point(0.0, now.batches + 1, now.samples + size, now.items + items, now.flops + flops)

    def _mark(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # sync: without it the time would be that of the launches
        self._points.append(self._now._replace(time_s=time.perf_counter()))
        while len(self._points) > 2 and self._points[1].batches <= self._now.batches - self.window_size:
            self._points.popleft()

    def _rates(self, trainer: Trainer) -> dict[str, float]:
        self._mark(trainer)
        first, last = self._points[0], self._points[-1]
        time_s = max(last.time_s - first.time_s, 1e-9)
        done = {name: getattr(last, name) - getattr(first, name) for name in ("batches", "samples", "items", "flops")}
        rates = {f"{name}_per_sec": number / time_s for name, number in done.items() if number}
        found = {"time": time_s, "batches": float(last.batches), "samples": float(last.samples)}
        found.update({f"device/{name}": rate for name, rate in rates.items()})
        if trainer.world_size > 1:
            found.update({name: rate * trainer.world_size for name, rate in rates.items()})
        if self.available_flops and "flops_per_sec" in rates:
            found["device/mfu"] = rates["flops_per_sec"] / self.available_flops
        if trainer.strategy.root_device.type == "cuda":
            found["device/peak_memory_gib"] = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 2**30
        if trainer.training:
            self._latest = found
        return {f"{trainer.state.stage}/{name}": value for name, value in found.items()}


def peak_flops(device_name: str, half: bool) -> float | None:
    """Return the peak operations per second of a GPU by its name, or None when it is not in the table.

    Args:
        device_name: As `torch.cuda.get_device_name` gives it.
        half: Whether matrix products are in 16 bits.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3", half=True)
        989000000000000.0
    """
    words = device_name.lower().replace("-", " ")
    fitting = (peaks[0 if half else 1] for name, peaks in PEAK_FLOPS.items() if f" {name} " in f" {words} ")
    return next(fitting, None)


def abbreviated(rate: float) -> str:
    """Return a rate in at most six characters.

    Example:
        >>> abbreviated(7.25), abbreviated(812.4), abbreviated(45_678), abbreviated(2.5e6)
        ('7.2', '812', '45.7k', '2.5M')
    """
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if rate >= limit:
            return f"{rate / limit:.1f}{unit}"
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _first_dimension(batch: Any) -> int:
    try:
        return find_batch_size(batch)
    except MisconfigurationException as error:
        raise MisconfigurationException(
            f"`ThroughputMonitor` found no tensor in a batch of type `{type(batch).__name__}` to count its samples by. "
            "Say how: `ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]))`."
        ) from error
