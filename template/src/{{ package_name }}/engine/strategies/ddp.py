"""Data parallelism: every rank holds the whole module, and gradients are averaged while they are computed.

Owns: wrapping a module in torch's DistributedDataParallel for training. Does not own: processes and collectives
(`processes`), and which rows a rank gets (`sharding`).

The wrapper is torch's; calling it runs `training_step`, so that all that happens in there is synchronised, however the
step calls its layers. Validation runs the bare module: it needs no gradients, and ranks may have different numbers of
batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .processes import DEFAULT_TIMEOUT, ProcessesStrategy


class DDPStrategy(ProcessesStrategy):
    """Train copies of a module in several processes, one for each device.

    Gradients are the mean over ranks, so the effective batch is processes times batch size times accumulation.

    Args:
        ddp_comm_state: State of the communication hook.
        ddp_comm_hook: How gradients are exchanged, as `torch.distributed.algorithms.ddp_comm_hooks` has them.
        ddp_comm_wrapper: Wraps the hook, for instance `fp16_compress_wrapper`.
        process_group_backend: See `ProcessesStrategy`.
        timeout: See `ProcessesStrategy`.
        start_timeout: See `ProcessesStrategy`.
        start_method: See `ProcessesStrategy`.
        options: Go to `DistributedDataParallel`: `find_unused_parameters`, `static_graph`, `bucket_cap_mb`, ...
    """

    strategy_name = "ddp"
    wraps_steps = True

    def __init__(
        self,
        *,
        ddp_comm_state: object = None,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
        start_timeout: timedelta = timedelta(minutes=5),
        start_method: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_timeout=start_timeout,
            start_method=start_method,
        )
        self.ddp_comm_state, self.ddp_comm_hook, self.ddp_comm_wrapper = ddp_comm_state, ddp_comm_hook, ddp_comm_wrapper
        self.options = options
        self._trained: list[int] = []  # identities of the parameters that the wrapper synchronises
        self._frozen: list[nn.Parameter] = []

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to its device; wrap it for training, else give all ranks rank 0's weights. A collective."""
        super().setup(module, training=training)
        if not training:
            self.broadcast_tensors([*module.parameters(), *module.buffers()])
            return
        self.start_epoch()

    def start_epoch(self) -> None:
        """Wrap the module; anew when other parameters are to be trained than before. A collective then.

        DistributedDataParallel synchronises what required gradients when it was made, and a callback may have
        unfrozen layers since.
        """
        trained = [id(parameter) for parameter in self.module.parameters() if parameter.requires_grad]
        if trained == self._trained:
            return
        self._unwrap()
        self._trained = trained
        self._frozen = [parameter for parameter in self.module.parameters() if not parameter.requires_grad]
        if trained:
            self.wrapped = self._wrap(self.module)

    def _wrap(self, module: nn.Module) -> DistributedDataParallel:
        ignored = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
        steps = _Steps(module)
        steps._ddp_params_and_buffers_to_ignore = [f"module.{name}" for name in ignored]  # type: ignore[assignment]
        # No device_ids: with them torch would walk every batch again to move it.
        wrapped = DistributedDataParallel(steps, **self.options)
        if self.ddp_comm_hook is not None:
            hook = self.ddp_comm_hook if self.ddp_comm_wrapper is None else self.ddp_comm_wrapper(self.ddp_comm_hook)
            wrapped.register_comm_hook(self.ddp_comm_state, hook)
        return wrapped

    def _follow_unfrozen(self) -> None:
        if any(parameter.requires_grad for parameter in self._frozen):  # nothing to look at where none was frozen
            self.start_epoch()

    def _unwrap(self) -> None:
        if self.wrapped is not None:
            # Else a second wrapper's gradients would go through the first too.
            self.wrapped._remove_autograd_hooks()
        self.wrapped, self._trained = None, []

    def teardown(self) -> None:
        """Take the wrapper off."""
        self._unwrap()
        super().teardown()

    # Steps.

    def step_function(self, name: str) -> Callable[..., Any]:
        """Return `training_step` through the wrapper; other steps as they are, with rank 0's buffers. A collective."""
        if name == "training_step":
            return self._train if self.module.automatic_optimization else self._train_by_hand
        if self.wrapped is not None:
            self._synchronise_buffers()
        return super().step_function(name)

    def _train(self, *args: Any) -> Any:
        self._follow_unfrozen()
        step = self.wrapped if self.wrapped is not None else self.module.training_step
        return self.checked_output(step(*args))

    def _train_by_hand(self, *args: Any) -> Any:
        self._follow_unfrozen()
        self._synchronise_buffers()
        return self.module.training_step(*args)

    def before_backward(self, loss: Tensor) -> Tensor:
        """Under manual optimisation: have the wrapper expect the gradients of this loss."""
        if self.wrapped is None:
            return loss
        self.wrapped.require_forward_param_sync = False  # buffers were synchronised before the step
        expected: Tensor = self.wrapped(loss)
        return expected

    def _synchronise_buffers(self) -> None:
        if self.options.get("broadcast_buffers", True):
            self.broadcast_tensors(list(self.module.buffers()))

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients are added up on each rank alone."""
        return self.wrapped.no_sync() if self.wrapped is not None else contextlib.nullcontext()


class _Steps(nn.Module):
    """What is wrapped. Called, it runs `training_step`; under manual optimisation it gets the loss and returns it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module.training_step(*args) if self.module.automatic_optimization else args[0]  # type: ignore[operator]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)
