"""What a run in other processes leaves behind in this one.

Owns: what comes back from rank 0 of the workers: weights, metrics, counters, and what the user's module, the callbacks
and the loggers keep as plain attributes. Does not own: how it travels (`strategies.launch`). What cannot travel stays
as it was: optimizers, open files, connections, loaders.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from .distributed import log
from .seed import rng_state, set_rng_state
from .session import make_run
from .states import TrainerFn
from .strategies.base import Strategy
from .transfer import apply_to_collection

_OF_TRAINER = (
    *("state", "progress", "metrics", "should_stop", "interrupted", "_ckpt_path", "history_rows", "predictions"),
    *("epoch_batch_indices", "current_batch_indices"),
)
_LARGEST_BYTES = 1 << 24  # of one attribute; weights travel apart
_STAYS = (Strategy, Optimizer, DataLoader, Dataset)


def hand_over(trainer: Any, module: nn.Module) -> dict[str, Any]:
    """Return what the trainer and the module have become, as data. Called on rank 0 after the run."""
    changed = trainer.state.fn is TrainerFn.FITTING or trainer.ckpt_path is not None
    attributes = [
        {name: _dumps(value, trainer, module) for name, value in vars_of(owner).items()}
        for owner in _owners(trainer, module)
    ]
    return {
        "weights": on_host(module.state_dict()) if changed else None,
        "trainer": _dumps({name: getattr(trainer, name) for name in _OF_TRAINER}, trainer, module),
        "attributes": attributes,
        "rng": rng_state(),
    }


def take_over(trainer: Any, module: nn.Module, state: dict[str, Any]) -> None:
    """Make this process's trainer and module what `hand_over` has described."""
    values = _loads(state["trainer"], trainer, module)
    make_run(trainer, values["state"].fn, module, trainer.datamodule)
    vars(trainer).update(values)
    trainer.run.state, trainer.run.progress = trainer.state, trainer.progress
    trainer.run.enter_nothing()
    if state["weights"] is not None:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and name in state["weights"]:
                tensor.data = tensor.data.to(state["weights"][name].dtype)  # a precision may have changed it
        module.load_state_dict(state["weights"], strict=False)
    for owner, found in zip(_owners(trainer, module), state["attributes"], strict=False):
        for name, data in found.items():
            if data is not None:
                owner.__dict__[name] = _loads(data, trainer, module)
    set_rng_state(state["rng"])


def on_host(data: Any) -> Any:
    """Return a nest with its tensors on the host and without graphs."""
    return apply_to_collection(data, lambda item: isinstance(item, Tensor), lambda tensor: tensor.detach().cpu())


def vars_of(owner: Any) -> dict[str, Any]:
    """Return the plain attributes of a callback, a logger or the module that may travel."""
    state = owner.__getstate__()
    plain = dict(state) if isinstance(state, dict) else {}
    if isinstance(owner, nn.Module):
        registered = vars(nn.Module())  # hooks, parameters, buffers and children: they are in the weights
        plain = {name: value for name, value in plain.items() if name not in registered}
    return plain


def _owners(trainer: Any, module: nn.Module) -> list[Any]:
    return [module, *trainer.callbacks, *trainer.loggers]


def _named(trainer: Any, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What both processes have, by a name that is the same in both."""
    yield "trainer", trainer
    yield "datamodule", trainer.datamodule
    yield from ((f"owner {i}", owner) for i, owner in enumerate(_owners(trainer, module)))
    yield from ((f"module {name}", child) for name, child in module.named_modules() if name)
    yield from ((f"tensor {name}", tensor) for name, tensor in module.state_dict(keep_vars=True).items())


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, trainer: Any, module: nn.Module) -> None:
        super().__init__(file)
        self.names = {id(thing): name for name, thing in _named(trainer, module) if thing is not None}

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, _STAYS):
            raise pickle.PicklingError(f"a {type(obj).__name__} stays in its process")
        return self.names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and (obj.device.type != "cpu" or obj.grad_fn is not None):
            return obj.detach().cpu().__reduce_ex__(2)  # type: ignore[no-untyped-call]
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, trainer: Any, module: nn.Module) -> None:
        super().__init__(file)
        self.things = dict(_named(trainer, module))

    def persistent_load(self, name: str) -> Any:
        return self.things[name]


def _dumps(value: Any, trainer: Any, module: nn.Module) -> bytes | None:
    """Return a value as bytes, with the things both processes have by name; None when it cannot or need not travel."""
    file = io.BytesIO()
    try:
        _Pickler(file, trainer, module).dump(value)
    except Exception as error:  # whatever an object's own pickling raises
        log.debug("Not taken over: %s", error)
        return None
    return file.getvalue() if file.tell() <= _LARGEST_BYTES else None


def _loads(data: bytes, trainer: Any, module: nn.Module) -> Any:
    return _Unpickler(io.BytesIO(data), trainer, module).load()
