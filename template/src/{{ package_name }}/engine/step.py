"""One training batch: forward, backward, step.

Owns: the algorithm of a batch under automatic and manual optimisation. Does not own: which batch, schedulers, logging
    (`fit`).

    loss = training_step(batch)
    if first batch of the accumulation window: zero_grad
    (loss / window).backward()
    if last batch of the window: clip, optimizer.step()

An optimizer that needs a closure (LBFGS), or a module that overrides `optimizer_step`, gets the first part as a
closure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .errors import MisconfigurationException
from .optimizer import needs_closure, wrap
from .run import Run, plain_backward, step_arguments

Outputs = Any


def automatic_step(run: Run, batch: Any, batch_idx: int, due: bool) -> Outputs:
    """Train on one batch; return what `training_step` returned.

    Args:
        run: The fit in progress.
        batch: On its device.
        batch_idx: Index in the epoch.
        due: Whether the accumulation window ends here.
    """
    if due and run.uses_closure:
        return closure_step(run, batch, batch_idx)
    output = forward_backward(run, batch, batch_idx)
    if due:
        before_step = run.before_step
        for optimizer in run.optimizers:
            if before_step is not None:
                before_step(optimizer)
            optimizer.step()
        run.progress.global_step += 1
    return output


def shared_step(run: Run, batch: Any, batch_idx: int, due: bool) -> Outputs:
    """`automatic_step` for several processes: they exchange gradients only at the batch that steps."""
    if due:
        return automatic_step(run, batch, batch_idx, due)
    with run.strategy.no_sync():
        return automatic_step(run, batch, batch_idx, due)


def forward_backward(run: Run, batch: Any, batch_idx: int) -> Outputs:
    """Compute the loss and its gradients; return what `training_step` returned."""
    results = run.train_results
    outer, results.hook = results.hook, "training_step"
    output = run.training_step(batch, batch_idx)
    results.hook = outer
    loss = output if type(output) is Tensor else loss_of(output)
    if run.starts_window:
        if run.zero_grad is None:
            for optimizer in run.optimizers:
                optimizer.zero_grad()
        else:
            run.zero_grad(batch_idx)
    if loss is None:
        return output
    if run.window_size != 1:
        loss = loss / run.window_size
    run.backward(loss)
    return output


def loss_of(output: Any) -> Tensor | None:
    """Return the loss in what `training_step` returned; None skips the batch.

    Raises:
        MisconfigurationException: It is neither a tensor, nor a dict with the key "loss", nor None.
    """
    if output is None or isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, Tensor):
            return loss
        found = (
            f"a dict with the keys {list(output)}"
            if loss is None
            else f"a dict whose 'loss' is a {type(loss).__name__}"
        )
    else:
        found = f"a `{type(output).__name__}`"
    raise MisconfigurationException(
        f"`training_step` returned {found}. Return the loss as a tensor, a dict with the loss tensor under 'loss', "
        "or None to skip the batch."
    )


def closure_step(run: Run, batch: Any, batch_idx: int) -> Outputs:
    """Train on one batch whose optimizers call the forward and backward pass themselves."""
    output: Any = None
    called = False

    def closure() -> Tensor | None:
        nonlocal output, called
        if not called or alone:
            called = True
            output = forward_backward(run, batch, batch_idx)
        return loss_of(output)

    alone = len(run.optimizers) <= 1
    overridden = run.hooks.module_overrides("optimizer_step")
    optimizer_step = run.hooks.method("optimizer_step")
    for optimizer in run.step_optimizers:
        if overridden:
            optimizer_step(run.progress.epoch, batch_idx, optimizer, closure)
        else:
            optimizer.step(closure)
        if not called and run.precision.scaler is None:
            raise MisconfigurationException(
                f"`{type(run.module).__name__}.optimizer_step` did not call its closure, so nothing was trained. "
                "Call `optimizer.step(closure=optimizer_closure)`, or `optimizer_closure()` yourself."
            )
        if run.parity:
            run.progress.global_step += 1
    if not run.step_optimizers:
        closure()
    if not run.parity or not run.step_optimizers:
        run.progress.global_step += 1
    return output


def manual_step(run: Run, batch: Any, batch_idx: int, due: bool) -> Outputs:
    """Call `training_step`, which does the rest; with accumulation its steps act at the end of a window."""
    run.stepped, run.ends_window = False, due
    if not run.starts_window:
        hold_gradients(run, run.optimizers)
    run.train_results.hook = "training_step"
    output = run.training_step(batch, batch_idx)
    run.train_results.hook = None
    if run.held:
        return_gradients(run, run.optimizers)
    if output is not None and not isinstance(output, (Tensor, Mapping)):
        loss_of(output)
    return output


def hold_gradients(run: Run, optimizers: list[Optimizer]) -> None:
    """Put gradients aside, where the user's `zero_grad` does not reach them, until the window ends."""
    for parameter in (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None:
            held = run.held.get(parameter)
            run.held[parameter] = parameter.grad if held is None else held + parameter.grad
            parameter.grad = None


def return_gradients(run: Run, optimizers: list[Optimizer]) -> None:
    """Add what was put aside to the gradients."""
    for parameter in (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
        held = run.held.pop(parameter, None)
        if held is not None:
            parameter.grad = held if parameter.grad is None else held + parameter.grad


def manual_backward(run: Run, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """What `LightningModule.manual_backward` does; with accumulation the loss is divided by the window's size."""
    if run.window_size != 1:
        loss = loss / run.window_size
    run.backward(loss, *args, **kwargs)


def perform_step(run: Run, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
    """What `StepOptimizer.step` does: the closure, unscaling, hooks, clipping, then the optimizer's own step."""
    scaler = run.precision.scaler
    if not run.module.automatic_optimization and not run.ends_window:
        loss = closure() if closure is not None else None
        hold_gradients(run, [optimizer])
        return loss
    if scaler is not None:
        loss = closure() if closure is not None else None
        return_gradients(run, [optimizer])
        if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            scaler.unscale_(optimizer)
            _before(run, optimizer)
            scaler.step(optimizer, **kwargs)
            scaler.update()
    else:

        def compute() -> Any:
            result = closure() if closure is not None else None
            if run.held:
                return_gradients(run, [optimizer])
            _before(run, optimizer)
            return result

        if "closure" in inspect.signature(optimizer.step).parameters:
            loss = optimizer.step(closure=compute, **kwargs)
        else:
            loss = compute()
            optimizer.step(**kwargs)
    if not run.module.automatic_optimization:
        count_manual_step(run)
    return loss


def count_manual_step(run: Run, *_: Any) -> None:
    """Count an optimizer's step under manual optimisation: once a batch, or every one with parity."""
    if run.parity or not run.stepped:
        run.progress.global_step += 1
    run.stepped = True


def _before(run: Run, optimizer: Optimizer) -> None:
    if run.before_step is not None:
        run.before_step(optimizer)


def prepare_steps(run: Run) -> None:
    """Decide, once a run, everything that `automatic_step` or `manual_step` needs to know."""
    module, hooks = run.module, run.hooks
    automatic = module.automatic_optimization
    run.step = manual_step if not automatic else shared_step if run.strategy.is_distributed else automatic_step
    run.training_step = training_function(run)
    run.backward = _backward(run)
    run.zero_grad = _zero_grad(run)
    run.before_step = _before_step(run)
    run.uses_closure = automatic and (
        run.parity
        or hooks.module_overrides("optimizer_step")
        or run.precision.scaler is not None
        or any(needs_closure(optimizer) for optimizer in run.optimizers)
    )
    hooked = [each for each in run.optimizers if hasattr(each, "register_step_post_hook")]  # all that are torch's
    for optimizer in hooked if not automatic and not run.parity else ():
        # Counts also the steps of a reference that the user kept, which goes past `self.optimizers()`.
        optimizer.register_step_post_hook(partial(count_manual_step, run))
    for optimizer in hooked if hooks.profiler is not None else ():
        tell = partial(_profile, run, f"[Optimizer]{type(optimizer).__name__}.step", [])
        optimizer.register_step_pre_hook(partial(tell, True))
        optimizer.register_step_post_hook(partial(tell, False))
    run.step_optimizers = [wrap(optimizer, partial(perform_step, run), run.module) for optimizer in run.optimizers]


def _profile(run: Run, label: str, inside: list[str], begins: bool, *_: Any) -> None:
    """Tell the profiler of an optimizer's step, not of its parent class's within it, which calls the hooks as well."""
    if not begins and inside:
        inside.pop()
    if not inside and not run.is_torn_down:  # the user may go on with the optimizer
        getattr(run.hooks.profiler, "start" if begins else "stop")(label)
    if begins:
        inside.append(label)


def training_function(run: Run) -> Callable[[Any, int], Any]:
    """Return `training_step` as a function of (batch, batch_idx): with autocast, wrapped or timed, where that acts."""
    function = run.strategy.step_function("training_step") if run.strategy.wraps_steps else run.module.training_step
    arguments = step_arguments(run.module.training_step, ("batch_idx",))
    takes_index = len(arguments(None, 0, 0)) == 2
    function = run.hooks.wrap("training_step", function)
    if run.precision.autocasts:
        context = run.precision.forward_context

        def in_context(batch: Any, batch_idx: int) -> Any:
            with context():
                return function(batch, batch_idx) if takes_index else function(batch)

        return in_context
    return function if takes_index else lambda batch, batch_idx: function(batch)


def _backward(run: Run) -> Callable[..., Any]:
    before, after = run.hooks["on_before_backward"], run.hooks["on_after_backward"]
    overridden, scaler = run.hooks.module_overrides("backward"), run.precision.scaler
    prepare = run.strategy.before_backward if not run.module.automatic_optimization else None
    acts = overridden or scaler is not None or run.hooks.profiler is not None
    if before is None and after is None and not acts and (prepare is None or not run.strategy.is_distributed):
        return methodcaller("backward") if run.module.automatic_optimization else plain_backward  # no frame of ours
    compute = run.hooks.method("backward")

    def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if before is not None:
            before(loss)
        loss = loss if prepare is None else prepare(loss)
        compute(loss if scaler is None else scaler.scale(loss), *args, **kwargs)
        if after is not None:
            after()

    return backward


def _zero_grad(run: Run) -> Callable[[int], None] | None:
    before = run.hooks["on_before_zero_grad"]
    overridden = run.hooks.module_overrides("optimizer_zero_grad")
    if before is None and not overridden:
        return None
    clear = run.hooks.method("optimizer_zero_grad")

    def zero_grad(batch_idx: int) -> None:
        for optimizer in run.optimizers:
            if before is not None:
                before(optimizer)
            clear(run.progress.epoch, batch_idx, optimizer)

    return zero_grad


def _before_step(run: Run) -> Callable[[Optimizer], None] | None:
    hook = run.hooks["on_before_optimizer_step"]
    trainer, overridden = run.trainer, run.hooks.module_overrides("configure_gradient_clipping")
    by_hand, asked = not run.module.automatic_optimization, bool(trainer.gradient_clip_val)
    clips = asked and not overridden and not run.parity if by_hand else asked or overridden
    if hook is None and not clips:
        return None
    clip = run.hooks.method("configure_gradient_clipping") if clips else None

    def before_step(optimizer: Optimizer) -> None:
        if hook is not None:
            hook(optimizer)
        if clip is not None:
            clip(
                optimizer,
                gradient_clip_val=trainer.gradient_clip_val,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )

    return before_step


def batch_end_outputs(run: Run, output: Any) -> Any:
    """Return what `on_train_batch_end` gets for `output`: the detached loss over the window's size, and the extras."""
    outputs = {"loss": output} if isinstance(output, Tensor) else dict(output or {})
    if "loss" in outputs:
        loss = outputs["loss"].detach()
        outputs["loss"] = loss / run.window_size if run.module.automatic_optimization else loss
    return outputs
