"""`LightningModule`: what a data scientist writes.

Owns: the public surface of the module and its helpers. Does not own: the loops that call it.
A module is an ordinary `nn.Module`: it works in a hand-written loop and in a unit test, where `log` is quiet.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .distributed import rank_zero_debug
from .errors import EndsAtCaller, MisconfigurationException
from .hooks import DataHooks, ModuleHooks
from .hparams import HyperparametersMixin, LoadableMixin
from .results import is_metric_collection

_ClipAlgorithms = ("norm", "value")


class LightningModule(ModuleHooks, DataHooks, HyperparametersMixin, LoadableMixin, nn.Module):
    """Model, steps and optimizers in one place.

    Write `__init__`, `forward`, `training_step` and `configure_optimizers`; everything else is optional. Hooks are
    drawn in `hooks.py`.

    Attributes:
        automatic_optimization: False: `training_step` calls `manual_backward` and `optimizer.step()` itself.
        strict_loading: Whether checkpoints must hold exactly this module's weights.
        example_input_array: An input for `forward`, for the summary, the graph and exports.
    """

    automatic_optimization: bool = True
    strict_loading: bool = True
    example_input_array: Any = None
    _trainer: Any = None
    _results: Any = None
    _cached_device: torch.device | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._optimizer_requires_grad: dict[nn.Parameter, bool] = {}

    # What the user writes.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch.

        Args:
            *args: `batch` on the module's device, then `batch_idx` if the signature has it.
            **kwargs: Never filled.

        Returns:
            The loss, a tensor of one element with a graph; or a dict with it under "loss"; or None to skip the batch.
        """
        raise MisconfigurationException(
            f"`{type(self).__name__}` has no `training_step`. Define `training_step(self, batch, batch_idx)` to use "
            "`fit`."
        )

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch, in evaluation mode and without gradients; log what should be monitored."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one test batch; `test_step = validation_step` is fine."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict one batch. Default: `self(batch)`."""
        return self(kwargs["batch"] if "batch" in kwargs else args[0])

    def configure_callbacks(self) -> Any:
        """Return callbacks of this module; they replace the trainer's of the same class."""
        return []

    def configure_optimizers(self) -> Any:
        """Return what to optimise with.

        Returns:
            An optimizer; a list of them; ([optimizers], [schedulers or dicts]);
            {"optimizer": o, "lr_scheduler": s or {"scheduler": s, "interval": "epoch" or "step", "frequency": 1,
            "monitor": name, "strict": True, "name": None}, "monitor": name}; a list of such dicts; or None.
        """
        raise MisconfigurationException(
            f"`{type(self).__name__}` has no `configure_optimizers`. Return an optimizer from it, "
            "for example `torch.optim.AdamW(self.parameters(), lr=1e-3)`."
        )

    # Steps of the algorithm that may be overridden.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients. `loss` is already divided by the accumulation factor (and scaled in 16-mixed)."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the optimizer. An override must call the closure, which runs forward, backward and clipping."""
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients, after the forward pass of an accumulation window's first batch."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; `metric` is the monitored value, or None."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip this optimizer's gradients before it steps. Default: as the Trainer's arguments say."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Logging.

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a metric; without a Trainer this does nothing.

        Args:
            name: Unique among metrics logged in this hook.
            value: A number, a tensor of one element, or a torchmetrics object that is an attribute of the module.
            prog_bar: Show it in the progress bar.
            logger: Send it to the loggers. Default: True.
            on_step: Keep each step's value. Default: True in training steps, False elsewhere.
            on_epoch: Reduce over the epoch. Default: False in training steps, True elsewhere.
            reduce_fx: "mean" (weighted by batch size), "sum", "max" or "min".
            enable_graph: Keep the autograd graph (uses memory).
            sync_dist: Reduce over processes; every rank must log the same names.
            sync_dist_group: Process group for it.
            add_dataloader_idx: Append `/dataloader_idx_N` when there are several evaluation loaders.
            batch_size: Weight in the epoch's mean. Default: the first dimension of the batch's first tensor.
            metric_attribute: Accepted for compatibility; the attribute is found by identity.
            rank_zero_only: Log on rank 0 alone.

        Raises:
            MisconfigurationException: The hook cannot log, or not in this way.
            ValueError: The value is not one number.
        """
        results = self._results
        if results is None:
            self._log_without_loop(name)
            return
        results.log(
            self,
            name,
            value,
            (
                prog_bar,
                logger,
                on_step,
                on_epoch,
                reduce_fx,
                enable_graph,
                sync_dist,
                sync_dist_group,
                add_dataloader_idx,
                rank_zero_only,
            ),
            batch_size,
        )

    def log_dict(self, dictionary: Any, **options: Any) -> None:
        """Log every item of a mapping or a torchmetrics `MetricCollection`; `options` are those of `log`."""
        asked = {"keep_base": False, "copy_state": False} if is_metric_collection(dictionary) else {}
        for name, value in dictionary.items(**asked):
            self.log(name, value, **options)

    def _log_without_loop(self, name: str) -> None:
        if self._trainer is None:
            rank_zero_debug("`self.log(%r, ...)` outside of a Trainer does nothing.", name)
            return
        raise MisconfigurationException(
            f"`self.log({name!r}, ...)` was called while no loop collects metrics (in a `predict` hook, in "
            "`configure_optimizers`, or after the run). Log in training, validation and test hooks."
        )

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 without breaking the progress bar."""
        write = print if self._trainer is None else self._trainer.print
        write(*args, **kwargs)

    # Where the module is and who runs it.

    @property
    def trainer(self) -> Any:
        """The Trainer that runs this module.

        Raises:
            RuntimeError: There is none.
        """
        if self._trainer is None:
            with EndsAtCaller():
                raise RuntimeError(
                    f"`{type(self).__name__}` is not attached to a `Trainer`. Pass it to `trainer.fit(...)`."
                )
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self._share("_trainer", trainer)

    def _share(self, name: str, value: Any) -> None:
        """Set a plain attribute here and in nested modules, past `nn.Module.__setattr__`."""
        for child in self.modules():
            if isinstance(child, LightningModule):
                child.__dict__[name] = value

    @property
    def device(self) -> torch.device:
        """Device of the parameters (cpu when there are none)."""
        if self._cached_device is None:
            first = next(itertools.chain(self.parameters(), self.buffers()), None)
            self.__dict__["_cached_device"] = torch.device("cpu") if first is None else first.device
        assert self._cached_device is not None
        return self._cached_device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter (the default type when there are none)."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.__dict__["_cached_device"] = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def on_gpu(self) -> bool:
        """Whether the module is on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self._trainer.logger if self._trainer is not None else None

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""
        return list(self._trainer.loggers) if self._trainer is not None else []

    @property
    def current_epoch(self) -> int:
        """Index of the epoch in progress; 0 without a Trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; 0 without a Trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Index of this process among all; 0 without a Trainer."""
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def local_rank(self) -> int:
        """Index of this process on its node; 0 without a Trainer."""
        return self._trainer.local_rank if self._trainer is not None else 0

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Gather tensors of any nest from all ranks, with a new leading dimension of ranks. A collective.

        With one process the data comes back unchanged.
        """
        return self.trainer.strategy.all_gather_nest(data, group, sync_grads)

    # Optimisation by hand.

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer, or the list of several; `use_pl_optimizer=False` gives the raw ones."""
        found = self.trainer.step_optimizers if use_pl_optimizer else self.trainer.optimizers
        return found[0] if len(found) == 1 else list(found)

    def lr_schedulers(self) -> Any:
        """Return None, the scheduler, or the list of several."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not found else found[0] if len(found) == 1 else found

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients under manual optimisation, with precision, hooks and processes taken care of.

        Raises:
            MisconfigurationException: `automatic_optimization` is True.
        """
        if self._trainer is None:
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            return
        if self.automatic_optimization:
            raise MisconfigurationException(
                "`manual_backward` was called under automatic optimisation. Set `self.automatic_optimization = False` "
                "in `__init__`, or return the loss."
            )
        self._trainer.manual_backward(loss, *args, **kwargs)

    def clip_gradients(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of one optimizer's parameters, over all of them together for "norm".

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: Largest norm or absolute value; None or 0 does nothing.
            gradient_clip_algorithm: "norm" (default) or "value".

        Raises:
            MisconfigurationException: The values differ from the Trainer's own, or the algorithm is unknown.
        """
        trainer = self._trainer
        ours = (getattr(trainer, "gradient_clip_val", None), getattr(trainer, "gradient_clip_algorithm", None))
        mines = (gradient_clip_val, gradient_clip_algorithm)
        for name, mine, theirs in zip(("val", "algorithm"), mines, ours, strict=True):
            if theirs is not None and mine is not None and str(mine) != str(theirs):
                raise MisconfigurationException(
                    f"`clip_gradients(gradient_clip_{name}={mine!r})` differs from "
                    f"`Trainer(gradient_clip_{name}={theirs!r})`. Set it in one of the two places."
                )
        value = gradient_clip_val if gradient_clip_val is not None else ours[0]
        algorithm = str(gradient_clip_algorithm or ours[1] or "norm").lower().rpartition(".")[2]
        if algorithm not in _ClipAlgorithms:
            raise MisconfigurationException(f"gradient_clip_algorithm={algorithm!r}: accepted are 'norm' and 'value'.")
        if not value:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if algorithm == "value":
            nn.utils.clip_grad_value_(parameters, value)
        elif trainer is not None:
            trainer.strategy.clip_grad_norm(parameters, value)
        else:
            nn.utils.clip_grad_norm_(parameters, value)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Freeze the parameters of the other optimizers; those shared with `optimizer` stay trainable."""
        mine = {p for group in optimizer.param_groups for p in group["params"]}
        state: dict[nn.Parameter, bool] = {}
        for other in self.trainer.optimizers:
            for parameter in (p for group in other.param_groups for p in group["params"]):
                if parameter not in state:
                    state[parameter] = parameter.requires_grad
                    parameter.requires_grad = parameter.requires_grad and parameter in mine
        self.__dict__["_optimizer_requires_grad"] = state

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo `toggle_optimizer`."""
        for parameter, requires_grad in self._optimizer_requires_grad.items():
            parameter.requires_grad = requires_grad
        self.__dict__["_optimizer_requires_grad"] = {}

    @contextlib.contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """Toggle for the length of a `with` block."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # Weights.

    def freeze(self) -> None:
        """Stop training every parameter, and go into evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Train every parameter, and go into training mode."""
        self.requires_grad_(True)
        self.train()

    def to_onnx(self, file_path: str | Path | None = None, input_sample: Any = None, **options: Any) -> Any:
        """Export `forward` to ONNX; `options` go to `torch.onnx.export`.

        Args:
            file_path: Where to; None writes no file.
            input_sample: Input of `forward`. Default: `example_input_array`.

        Returns:
            The exported program.

        Raises:
            ValueError: There is neither.
        """
        sample = input_sample if input_sample is not None else self.example_input_array
        if sample is None:
            raise ValueError("`to_onnx` needs an input. Pass `input_sample=`, or set `self.example_input_array`.")
        was_training = self.training
        self.eval()
        try:
            inputs = sample if isinstance(sample, tuple) else (sample,)
            return torch.onnx.export(self, inputs, None if file_path is None else str(file_path), **options)
        finally:
            self.train(was_training)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trainer out of pickles and copies: a module travels alone."""
        left = {"_trainer", "_results", "_compiled_call_impl"}
        compiled = {"log", "training_step"}  # by `Trainer(compile="step")`
        return {n: v for n, v in self.__dict__.items() if n not in left and not (n in compiled and callable(v))}
