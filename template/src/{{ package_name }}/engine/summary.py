"""What a model consists of, and what a run of `validate` or `test` found, as text.

Owns: counting parameters, sizes and FLOPs of layers; the tables.
Does not own: when they are printed (callbacks, trainer).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

from .distributed import log
from .errors import require
from .transfer import move_data_to_device

UNKNOWN = "?"
_UNITS = ["", " K", " M", " B", " T", " P"]


@dataclass
class LayerSummary:
    """One row: a layer and what is below it.

    Attributes:
        layer_type: Name of its class.
        num_parameters: Parameters of the layer and below; lazy ones that have no shape yet count 0.
        training: Whether it is in training mode.
        in_size: Shape of its input when the example ran through, as a list or nested lists, else "?".
        out_size: Shape of its output.
        flops: Floating point operations of one forward pass of the example.
    """

    layer_type: str
    num_parameters: int
    training: bool
    in_size: Any = UNKNOWN
    out_size: Any = UNKNOWN
    flops: int = 0


class ModelSummary:
    """Count what a model consists of.

    With `example_input_array` set on the module, the example runs through it once, in evaluation mode and without
    gradients, to find the sizes and the FLOPs; modes are put back and random numbers are not touched.

    Args:
        model: The module, usually a `LightningModule`.
        max_depth: Levels to list: 1 lists the children, -1 everything, 0 nothing but the totals.

    Raises:
        ValueError: `max_depth` is below -1.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512))
        >>> print(ModelSummary(model))
          | Name | Type        | Params | Mode
        0 | 0    | Linear      | 132 K  | train
        1 | 1    | BatchNorm1d | 1.0 K  | train
        133 K parameters, all trainable, 0.530 MB
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        if not isinstance(max_depth, int) or max_depth < -1:
            raise ValueError(f"`max_depth={max_depth!r}`: accepted are -1 (all levels), 0 (only totals), 1, 2, ...")
        self._model = model
        self._max_depth = max_depth
        self.total_flops = 0
        self._layers = self.summarize()

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """The listed layers, by name."""
        deepest = self._max_depth if self._max_depth >= 0 else float("inf")
        return [(name, m) for name, m in self._model.named_modules() if name and name.count(".") < deepest]

    @property
    def layer_names(self) -> list[str]:
        """Names of the listed layers."""
        return list(self._layers)

    @property
    def layer_types(self) -> list[str]:
        """Their classes."""
        return [layer.layer_type for layer in self._layers.values()]

    @property
    def param_nums(self) -> list[int]:
        """Their numbers of parameters."""
        return [layer.num_parameters for layer in self._layers.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each is in training mode."""
        return [layer.training for layer in self._layers.values()]

    @property
    def in_sizes(self) -> list[Any]:
        """Shapes of their inputs."""
        return [layer.in_size for layer in self._layers.values()]

    @property
    def out_sizes(self) -> list[Any]:
        """Shapes of their outputs."""
        return [layer.out_size for layer in self._layers.values()]

    @property
    def flop_counts(self) -> dict[str, int]:
        """Their FLOPs, by name."""
        return {name: layer.flops for name, layer in self._layers.items()}

    @property
    def total_parameters(self) -> int:
        """Parameters of the model, shared ones counted once."""
        return _count(self._model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """Those that require a gradient."""
        return _count(p for p in self._model.parameters() if p.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """Sum over the listed layers."""
        return sum(self.param_nums)

    @property
    def total_training_modes(self) -> dict[str, int]:
        """Number of sub-modules in "train" and in "eval" mode."""
        modes = [module.training for module in self._model.modules()][1:]
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def model_size(self) -> float:
        """Megabytes (10^6 bytes) of the parameters, in the type they have."""
        parameters = (p for p in self._model.parameters() if not isinstance(p, UninitializedParameter))
        return sum(p.numel() * p.element_size() for p in parameters) / 1e6

    def summarize(self) -> dict[str, LayerSummary]:
        """Look at the model again."""
        layers = {
            name: LayerSummary(type(module).__name__, _count(module.parameters()), module.training)
            for name, module in self.named_modules
        }
        lazy = any(isinstance(p, UninitializedParameter) for p in self._model.parameters())  # a forward would make them
        if getattr(self._model, "example_input_array", None) is not None and not lazy:
            self._run_example(layers)
        return layers

    def _run_example(self, layers: dict[str, LayerSummary]) -> None:
        model = self._model
        modes = {module: module.training for module in model.modules()}
        hooks = [module.register_forward_hook(_sizes_into(layers[name])) for name, module in self.named_modules]
        counter = FlopCounterMode(display=False)
        try:
            model.eval()
            self.total_flops = _forward_example(model, counter)
        except Exception as error:  # the user's forward; a summary must not stop the training
            log.info("The example input did not run through the model (%s); sizes are unknown.", error)
            return
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes.items():
                module.training = mode
        counts = counter.get_flop_counts()
        for name, layer in layers.items():
            layer.flops = sum(counts.get(f"{type(model).__name__}.{name}", {}).values())

    def columns(self) -> dict[str, list[str]]:
        """Return the table: heading to cells, one for each layer."""
        layers = list(self._layers.values())
        columns = {
            " ": [str(number) for number in range(len(layers))],
            "Name": self.layer_names,
            "Type": self.layer_types,
            "Params": [get_human_readable_count(layer.num_parameters) for layer in layers],
            "Mode": ["train" if layer.training else "eval" for layer in layers],
        }
        if any(layer.in_size != UNKNOWN for layer in layers):
            columns["FLOPs"] = [get_human_readable_count(layer.flops) for layer in layers]
            columns["In sizes"] = [str(layer.in_size) for layer in layers]
            columns["Out sizes"] = [str(layer.out_size) for layer in layers]
        top = sum(layer.num_parameters for name, layer in self._layers.items() if "." not in name)
        own = self.total_parameters - top
        if own > 0 and self._max_depth != 0:
            row = {"Name": "other params", "Type": "n/a", "Params": get_human_readable_count(own)}
            for heading, cells in columns.items():
                cells.append(row.get(heading, "" if heading == " " else "n/a"))
        return columns

    def totals(self) -> str:
        """Return the totals in one line."""
        modes = self.total_training_modes
        return totals(self.total_parameters, self.trainable_parameters, self.model_size, modes, self.total_flops)

    def line(self, width: int | None = None) -> str:
        """Return the model in one line: its totals and its largest children.

        Args:
            width: Characters it may have; None: those of the terminal.
        """
        width = width or shutil.get_terminal_size().columns
        text = f"{type(self._model).__name__}: {self.totals()}"
        children = [(name, layer) for name, layer in self._layers.items() if layer.num_parameters and "." not in name]
        for name, layer in sorted(children, key=lambda child: -child[1].num_parameters)[:3]:
            more = f" · {name} {get_human_readable_count(layer.num_parameters)}"
            text = text + more if len(text + more) <= width else text
        return text

    def __str__(self) -> str:
        columns = self.columns()
        return "\n".join([*(table(columns) if columns["Name"] else []), self.totals()])

    __repr__ = __str__


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> ModelSummary:
    """Return the summary of a model; see `ModelSummary`."""
    return ModelSummary(lightning_module, max_depth=max_depth)


def table(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Return heading and rows as lines, with cells padded to their columns."""
    widths = [max(len(text) for text in (heading, *cells)) for heading, cells in columns.items()]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def totals(total: int, trainable: int, size_mb: float, modes: Mapping[str, int], flops: int) -> str:
    """Return what a whole model amounts to, in one line.

    Args:
        total: Parameters.
        trainable: Those that require a gradient.
        size_mb: Megabytes of the parameters.
        modes: Number of sub-modules in "train" and in "eval" mode.
        flops: Of one forward pass; 0 when it is not known.
    """
    parts = [
        f"{get_human_readable_count(total)} parameters",
        "all trainable" if trainable == total else f"{get_human_readable_count(trainable)} trainable",
        f"{size_mb:.3f} MB" if size_mb < 10 else f"{size_mb:,.0f} MB",
        f"{modes['eval']} of {sum(modes.values())} modules in eval mode" if modes["eval"] else "",
        f"{get_human_readable_count(flops)} FLOPs" if flops else "",
    ]
    return ", ".join(part for part in parts if part)


def get_human_readable_count(number: int) -> str:
    """Return a number in a few characters.

    Example:
        >>> [get_human_readable_count(n) for n in (0, 123, 1234, 56_700_000, 3_000_000_000)]
        ['0', '123', '1.2 K', '56.7 M', '3.0 B']
    """
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f}{_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f}{_UNITS[unit]}"


def parse_batch_shape(batch: Any) -> Any:
    """Return the shape of a tensor as a list, of a collection as a list of them, "?" otherwise."""
    if hasattr(batch, "shape"):
        return list(batch.shape)
    if isinstance(batch, (list, tuple)):
        return [parse_batch_shape(item) for item in batch]
    return UNKNOWN


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(0 if isinstance(p, UninitializedParameter) else p.numel() for p in parameters)


def _sizes_into(layer: LayerSummary) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        layer.in_size = parse_batch_shape(inputs[0] if len(inputs) == 1 else inputs)
        layer.out_size = parse_batch_shape(output)

    return hook


def _forward_example(model: nn.Module, counter: FlopCounterMode) -> int:
    """Run the example through the model on its device and in its precision; return the FLOPs."""
    example: Any = model.example_input_array
    precision = getattr(getattr(model, "_trainer", None), "precision_plugin", None)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        example = move_data_to_device(example, parameter.device)
    if precision is not None:
        example = precision.convert_input(example)
    with torch.no_grad(), counter, precision.forward_context() if precision else contextlib.nullcontext():
        if isinstance(example, Mapping):
            model(**example)
        else:
            model(*(example if isinstance(example, (list, tuple)) else (example,)))
    return int(counter.get_total_flops())


def results_table(results: Sequence[Mapping[str, float]], title: str = "") -> str:
    """Return what `validate` or `test` found as a table: a row for each metric, a column for each loader.

    Args:
        results: One dictionary for each loader; "/dataloader_idx_N" is taken off the names.
        title: Heading of the first column; "" says "metric".

    Returns:
        Text with colours when rich is installed and stdout is a terminal, plain otherwise; "" without metrics.

    Example:
        >>> print(results_table([{"test_loss": 0.25, "test_acc": 0.984375}], "test"))
        test      | value
        test_loss | 0.2500
        test_acc  | 0.9844
    """
    columns = [{name.split("/dataloader_idx_")[0]: value for name, value in result.items()} for result in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return ""
    headings = ["value"] if len(columns) == 1 else [f"loader {i}" for i in range(len(columns))]
    shown = {title or "metric": names}
    for heading, column in zip(headings, columns, strict=True):
        shown[heading] = [_shown(column.get(name)) for name in names]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and importlib.util.find_spec("rich") is not None:
        return rich_table(shown)
    return "\n".join(table(shown))


def rich_table(columns: Mapping[str, Sequence[str]], right: Sequence[str] = (), footer: str = "") -> str:
    """Return a table drawn by rich for the terminal at hand.

    Args:
        columns: Heading to cells.
        right: Headings of columns to align right.
        footer: Text below the table.

    Raises:
        MissingExtraError: rich is not installed.
    """
    boxes = require("rich.box", "rich", "A table for the terminal")
    grid = require("rich.table", "rich", "A table for the terminal").Table(box=boxes.SIMPLE_HEAD, pad_edge=False)
    for heading in columns:
        grid.add_column(heading, justify="right" if heading in right else "left", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        grid.add_row(*row)
    text = io.StringIO()
    colour = sys.stdout.isatty()
    console = require("rich.console", "rich", "A table for the terminal").Console(file=text, force_terminal=colour)
    console.print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip()) + (
        f"\n{footer}" if footer else ""
    )


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    value = float(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.4g}"
