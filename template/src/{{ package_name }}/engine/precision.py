"""Numeric precision: what a module, a batch and the steps are computed in.

Owns: the names of precisions, casting, autocast and the gradient scaler. Does not own: when a step runs or is skipped
(`step`, `optimizer`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .distributed import rank_zero_warn
from .errors import MisconfigurationException, did_you_mean, require
from .transfer import apply_to_collection

M = TypeVar("M", bound=nn.Module)

_TODAY = ("32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "float8-mixed")
_OLDER = {16: "16-mixed", 32: "32-true", 64: "64-true", "16": "16-mixed", "32": "32-true", "64": "64-true"}
_NAMES: dict[object, str] = {name: name for name in _TODAY} | _OLDER | {"bf16": "bf16-mixed", None: "32-true"}
_CASTS = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float64: "double"}


class Precision:
    """32-true: nothing is cast. Base of the others.

    Attributes:
        precision: Its name, as in `Trainer(precision=...)`.
        scaler: Scales the loss where gradients would underflow; None: not needed.
        autocasts: Steps must run inside `forward_context()`; False: the loop never enters it.
        converts_input: Batches must go through `convert_input`.
    """

    precision: str = "32-true"
    scaler: torch.amp.GradScaler | None = None
    autocasts: bool = False
    converts_input: bool = False

    def convert_module(self, module: M) -> M:
        """Return the module in the dtype it is to be trained in (the same object)."""
        return module

    def restore_module(self, module: nn.Module) -> None:
        """Make a trained module an ordinary one again, where `convert_module` put other layers into it."""

    def convert_input(self, batch: Any) -> Any:
        """Return the batch, any nest, with its floating-point tensors in the dtype that the module takes."""
        return batch

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context that training, validation, test and predict steps run in; backward runs outside."""
        return nullcontext()

    def init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new layers are made in the dtype of training."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the scaler's state, or nothing."""
        return self.scaler.state_dict() if self.scaler else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned. Empty (saved under another precision): the scaler starts anew."""
        if self.scaler and state:
            self.scaler.load_state_dict(state)


class MixedPrecision(Precision):
    """16-mixed and bf16-mixed: weights stay float32, `torch.autocast` picks the dtype of each operation.

    Args:
        precision: "16-mixed" or "bf16-mixed".
        device: Type of the device, such as "cuda".
        scaler: In place of the usual GradScaler; for 16-mixed only.

    Raises:
        MisconfigurationException: Another precision, or a scaler for bf16-mixed, which needs none.
    """

    autocasts = True

    def __init__(self, precision: str, device: str, scaler: torch.amp.GradScaler | None = None) -> None:
        if precision not in ("16-mixed", "bf16-mixed"):
            raise MisconfigurationException(
                f"MixedPrecision(precision={precision!r}) does not exist. Accepted: '16-mixed', 'bf16-mixed'. "
                f"For whole models in half precision use `HalfPrecision`."
            )
        if scaler is not None and precision == "bf16-mixed":
            raise MisconfigurationException(
                f"MixedPrecision('bf16-mixed', scaler={type(scaler).__name__}) does not fit: bfloat16 has the range of "
                f"float32. Leave the scaler out, or use '16-mixed'."
            )
        self.precision, self.device = precision, device
        self.dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
        self.scaler = torch.amp.GradScaler(device) if scaler is None and precision == "16-mixed" else scaler

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a new `torch.autocast`.

        Without its cache of cast weights: a module called twice in one step then sums its gradients in float32.
        """
        return torch.autocast(self.device, dtype=self.dtype, cache_enabled=False)


class _TruePrecision(Precision):
    """Module, batches and new tensors all in one dtype. The module stays in it after the run."""

    autocasts = True
    converts_input = True
    dtype: torch.dtype

    def convert_module(self, module: M) -> M:
        """Convert floating-point parameters and buffers in place; complex and whole numbers stay as they are."""
        # Not `module.to(dtype)`: it would make complex tensors real, and the sums inside torchmetrics imprecise.
        cast: M = getattr(module, _CASTS[self.dtype])()
        return cast

    def convert_input(self, batch: Any) -> Any:
        """Convert floating-point tensors anywhere in the batch."""
        return apply_to_collection(batch, _is_floating_point, lambda tensor: tensor.to(self.dtype))

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Make this dtype torch's default, for tensors that the step creates."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def init_context(self) -> AbstractContextManager[None]:
        """Make this dtype torch's default, for weights that are made."""
        return self.forward_context()


class HalfPrecision(_TruePrecision):
    """16-true and bf16-true: half the memory; optimizers work in it as well, so small updates can be lost.

    Args:
        precision: "16-true" or "bf16-true".
    """

    def __init__(self, precision: str = "16-true") -> None:
        if precision not in ("16-true", "bf16-true"):
            raise MisconfigurationException(
                f"HalfPrecision(precision={precision!r}) does not exist. Accepted: '16-true', 'bf16-true'."
            )
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16


class DoublePrecision(_TruePrecision):
    """64-true: everything in float64."""

    precision = "64-true"
    dtype = torch.float64


class Float8Precision(MixedPrecision):
    """float8-mixed: bf16-mixed, and the products of large linear layers in float8, scaled tensor by tensor (torchao).

    Weights stay float32 and keep their names. Layers whose sizes are no multiples of 16 stay as they are.

    Args:
        device: Type of the device.
        emulate: Compute with float8's accuracy but without its speed, on any device.

    Raises:
        MisconfigurationException: The device has no float8 products.
        MissingExtraError: torchao is not installed.
    """

    def __init__(self, device: str = "cuda", emulate: bool = False) -> None:
        super().__init__("bf16-mixed", device)
        self.precision, self.emulate = "float8-mixed", emulate
        if not emulate and (device != "cuda" or torch.cuda.get_device_capability() < (8, 9)):
            raise MisconfigurationException(
                f"precision='float8-mixed' on this {device} device: float8 products exist from NVIDIA's compute "
                "capability 8.9 on (L4, H100 and newer). Use 'bf16-mixed', or, to try it, "
                "`plugins=Float8Precision(emulate=True)`."
            )
        self._torchao: Any = require("torchao.float8", "float8", "precision='float8-mixed'")
        self._replaced: list[tuple[nn.Module, str, nn.Linear]] = []

    def convert_module(self, module: M) -> M:
        """Replace linear layers in place; their parameters stay the same objects."""
        before = {name: child for name, child in module.named_modules() if type(child) is nn.Linear}
        self._torchao.convert_to_float8_training(
            module, config=self._torchao.Float8LinearConfig(emulate=self.emulate), module_filter_fn=_fits_float8
        )
        for name, layer in before.items():
            parent, _, last = name.rpartition(".")
            if getattr(module.get_submodule(parent), last) is not layer:
                self._replaced.append((module.get_submodule(parent), last, layer))
        return module

    def restore_module(self, module: nn.Module) -> None:
        """Put the layers back, with the parameters as they are now."""
        while self._replaced:
            parent, name, layer = self._replaced.pop()
            trained = getattr(parent, name)
            layer.weight, layer.bias = trained.weight, trained.bias
            layer.train(trained.training)
            setattr(parent, name, layer)


def _fits_float8(module: nn.Module, name: str) -> bool:
    return type(module) is nn.Linear and module.in_features % 16 == 0 and module.out_features % 16 == 0


def _is_floating_point(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point()


def select_precision(precision: str | int | Precision | None, device_type: str) -> Precision:
    """Return the precision that a name stands for.

    Args:
        precision: "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "float8-mixed"; the older 16,
            32, 64, "16", "32", "64", "bf16"; None: 32-true; a `Precision` is returned as it is.
        device_type: Such as "cpu" or "cuda". On a CPU or TPU, 16-mixed becomes bf16-mixed with a warning.

    Raises:
        MisconfigurationException: The name is not one of these.
    """
    if isinstance(precision, Precision):
        return precision
    name = _NAMES.get(precision) if isinstance(precision, (str, int, type(None))) else None
    if name is None:
        names = [str(option) for option in _NAMES if option is not None]
        raise MisconfigurationException(
            f"Trainer(precision={precision!r}) does not exist.{did_you_mean(str(precision), names)} "
            f"Accepted: {', '.join(repr(option) for option in _NAMES if option is not None)}."
        )
    if name == "16-mixed" and device_type in ("cpu", "tpu", "xla"):
        rank_zero_warn(
            f"Trainer(precision='16-mixed') on the {device_type.upper()}: float16 is not trained there, bfloat16 is "
            "used instead. Write precision='bf16-mixed' to say so yourself."
        )
        name = "bf16-mixed"
    if name == "float8-mixed":
        return Float8Precision(device_type)
    if name.endswith("-mixed"):
        return MixedPrecision(name, device_type)
    if name == "64-true":
        return DoublePrecision()
    return Precision() if name == "32-true" else HalfPrecision(name)
