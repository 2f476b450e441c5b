"""What a classifier takes for what, and the rows that it is furthest from: two tables and two pictures of a test.

A task has them when its `test_step` returns `{"logits": (batch, classes) float, "labels": (batch,) int}`.

    confusion.csv  confusion.svg   rows of each class by the class they were taken for
    worst.csv      worst.svg       the rows with the largest loss; the picture where they are images

Owns: collecting, the four files, and handing them to the trackers. Does not own: metrics (the task logs them).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .engine import Callback, LightningModule, Trainer

WORST = 16
_COLUMNS = 4
_WRITE_NUMBERS_UP_TO = 20  # classes, beyond which they would not be readable


class Mistakes(Callback):
    """Write what the test got wrong; every rank counts its rows, rank 0 writes. `fast_dev_run` leaves nothing.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self._confusion: Tensor | None = None
        self._worst: list[tuple[float, int, int, int, float, Tensor | None]] = []
        self._seen = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._begin()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Count the batch, and keep its worst rows."""
        if not isinstance(outputs, dict) or not {"logits", "labels"} <= outputs.keys():
            return
        logits, labels = outputs["logits"].detach().float().cpu(), outputs["labels"].detach().cpu()
        classes = logits.shape[1]
        taken_for = logits.argmax(1)
        counts = torch.bincount(labels * classes + taken_for, minlength=classes**2).view(classes, classes)
        self._confusion = counts if self._confusion is None else self._confusion + counts
        losses = F.cross_entropy(logits, labels, reduction="none")
        confidence = logits.softmax(1).max(1).values
        images = _images(batch)
        for i in losses.topk(min(WORST, len(losses))).indices.tolist():
            image = None if images is None else images[i].detach().float().cpu()
            found = (losses[i].item(), self._seen + i, int(labels[i]), int(taken_for[i]), confidence[i].item(), image)
            self._worst.append(found)
        self._worst = sorted(self._worst, key=lambda row: -row[0])[:WORST]
        self._seen += len(labels)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the ranks' counts, write the files and hand them to the trackers."""
        if self._confusion is None or trainer.fast_dev_run:
            return
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, (self._confusion, self._worst))
            self._confusion = torch.stack([counts for counts, _ in gathered]).sum(0)
            self._worst = sorted((row for _, rows in gathered for row in rows), key=lambda row: -row[0])[:WORST]
        if trainer.is_global_zero:
            for file in self._write(self._confusion):
                for logger in trainer.loggers:
                    logger.log_artifact(file)

    def _write(self, confusion: Tensor) -> list[Path]:
        classes = range(len(confusion))
        tables = {
            "confusion.csv": [["class", *classes], *([i, *row] for i, row in enumerate(confusion.tolist()))],
            "worst.csv": [["row", "label", "taken_for", "confidence", "loss"], *(_line(row) for row in self._worst)],
        }
        for name, lines in tables.items():
            with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(lines)
        written = [self.folder / name for name in tables]
        if find_spec("matplotlib") is not None:
            written.append(draw_confusion(confusion, self.folder / "confusion.svg"))
            if all(row[-1] is not None for row in self._worst):
                written.append(draw_worst(self._worst, self.folder / "worst.svg"))
        return written


def draw_confusion(confusion: Tensor, path: Path) -> Path:
    """Draw a table of counts `(classes, classes)` int, a row for each true class; colours are shares of the row."""
    from matplotlib.figure import Figure

    size = len(confusion)
    figure = Figure(figsize=(max(4.0, 0.42 * size + 1.4),) * 2, layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="class")
    if size <= _WRITE_NUMBERS_UP_TO:
        axes.set(xticks=range(size), yticks=range(size))
        for i, row in enumerate(confusion.tolist()):
            for j, count in enumerate(row):
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(count or ""), ha="center", va="center", color=colour)
    figure.savefig(path, metadata={"Date": None})
    return path


def draw_worst(rows: Sequence[tuple[Any, ...]], path: Path) -> Path:
    """Draw the images of the worst rows, each with its class and the class it was taken for."""
    from matplotlib.figure import Figure

    lines = -(-len(rows) // _COLUMNS)
    figure = Figure(figsize=(1.7 * _COLUMNS, 1.9 * lines), layout="constrained")
    for place, (_, row, label, taken_for, confidence, image) in enumerate(rows, start=1):
        axes = figure.add_subplot(lines, _COLUMNS, place)
        axes.axis("off")
        axes.imshow(image.movedim(0, -1).squeeze(-1).clamp(0, 1).tolist(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"row {row}: {label}\nas {taken_for} ({confidence:.0%})", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    return path


def _line(row: tuple[Any, ...]) -> list[Any]:
    loss, index, label, taken_for, confidence, _ = row
    return [index, label, taken_for, f"{confidence:.4f}", f"{loss:.4f}"]


def _images(batch: Any) -> Tensor | None:
    """Return the inputs of a batch if they are images `(batch, 1 or 3, height, width)` float, values 0..1."""
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    is_image = isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3)
    return inputs if is_image and inputs.is_floating_point() else None
