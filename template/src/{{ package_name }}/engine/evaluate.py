"""Validation and test.

Owns: the loop over evaluation loaders, inside `fit` and on its own, and what it returns. Does not own: training.

    on_validation_model_eval · on_validation_start · on_validation_epoch_start
    for each loader, for each batch: on_validation_batch_start · validation_step · on_validation_batch_end
    on_validation_epoch_end · log · on_validation_end · modes restored
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .data import flattened, set_epoch
from .dispatch import overrides, parameters_of
from .distributed import rank_zero_warn
from .hooks import Callback
from .loading import has_loader, load_loaders
from .metrics import is_number
from .position import own_states, samplers_of, set_own_states
from .results import Results
from .run import Loaders, Run, scalars, step_arguments, to_floats
from .seed import isolate_rng, rng_state, set_rng_state
from .states import RunningStage


def sanity_check(run: Run) -> None:
    """Validate on a few batches before training, so that a mistake there shows now; leaves no trace."""
    trainer = run.trainer
    steps = trainer.num_sanity_val_steps
    if not steps or not trainer.enable_validation or (run.progress.inside_epoch and run.progress.tail != "epoch_end"):
        return
    results, before = run.eval_results, trainer.metrics.copy()
    run.enter(RunningStage.SANITY_CHECKING, results)
    with isolate_rng():
        run.hooks.call("on_sanity_check_start")
        load_evaluation(run)
        if run.val is not None and any(run.val.limits):
            loaders = Loaders(run.val.nest, run.val.loaders, [min(steps, limit) for limit in run.val.limits])
            before_walk = own_states(flattened(run.val.nest))
            with torch.no_grad():
                evaluate(run, loaders, "validation", results)
            if not run.parity:
                set_own_states(flattened(run.val.nest), before_walk)
        run.hooks.call("on_sanity_check_end")
    trainer.metrics = before


def validates_this_epoch(run: Run) -> bool:
    """Return whether validation may run in this epoch."""
    every = run.trainer.check_val_every_n_epoch
    return run.trainer.enable_validation and (every is None or (run.progress.epoch + 1) % every == 0)


def load_evaluation(run: Run) -> None:
    """Load the validation loaders, at first and then every `reload_dataloaders_every_n_epochs`."""
    trainer, epoch = run.trainer, run.progress.epoch
    every = trainer.reload_dataloaders_every_n_epochs
    is_due = every and epoch - run.val_loaded_at >= every
    if trainer.enable_validation and (run.val is None or is_due):
        is_due = is_due or run.val_loaded_at < 0  # else a resumed run waits for its turn
        run.val = load_loaders(run, "val", "limit_val_batches")
        if run.val is not None and run.val_states is not None:
            set_own_states(flattened(run.val.nest), run.val_states)
            run.val_states = None
        if is_due and (not trainer.sanity_checking or validates_this_epoch(run)):
            run.val_loaded_at = epoch
        if run.parity:
            run.seen_batches.clear()


def validate_in_fit(run: Run, zero_grad: bool) -> None:
    """Validate in the middle of training.

    The generators are left as they were, so that validating never changes training.
    """
    trainer = run.trainer
    trainer.metrics.refresh(run.train_results)
    run.refreshed_at = run.progress.total_batches
    run.enter(RunningStage.VALIDATING, run.eval_results)
    if zero_grad:
        run.hooks.method("on_validation_model_zero_grad")()
    load_evaluation(run)
    if run.val is None or not any(run.val.limits):
        run.enter(RunningStage.TRAINING, run.train_results)
        return
    run.progress.validations += 1
    run.outer_rng = None if run.parity else rng_state()
    run.val_states = own_states(flattened(run.val.nest))
    with torch.no_grad():
        evaluate(run, run.val, "validation", run.eval_results)
    if run.outer_rng is not None:
        set_rng_state(run.outer_rng)
        run.outer_rng = None
    run.val_states = None
    run.progress.tail = "plateau"
    run.last_validation_s = time.monotonic()
    run.enter(RunningStage.TRAINING, run.train_results)


def evaluation(run: Run) -> list[dict[str, float]]:
    """Run `validate` or `test`; return one dict of the logged epoch metrics for each loader."""
    testing = run.state.fn == "test"
    stage, prefix = (RunningStage.TESTING, "test") if testing else (RunningStage.VALIDATING, "validation")
    loader_stage = "test" if testing else "val"
    run.enter(stage, run.eval_results)
    run.evaluation = load_loaders(run, loader_stage, f"limit_{loader_stage}_batches")
    if run.evaluation is None or not any(run.evaluation.limits):
        return []
    if not testing:
        run.val = run.evaluation
    no_grad = torch.inference_mode() if run.trainer.inference_mode else torch.no_grad()
    with no_grad:
        return evaluate(run, run.evaluation, prefix, run.eval_results)


def evaluate(run: Run, loaders: Loaders, prefix: str, results: Results) -> list[dict[str, float]]:
    """Walk all loaders once.

    Args:
        run: The run in progress, already in its stage.
        loaders: With the number of batches to take of each.
        prefix: "validation" or "test".
        results: Where `self.log` records.

    Returns:
        The logged epoch metrics of each loader; those logged at the epoch's end are in each.
    """
    hooks, trainer = run.hooks, run.trainer
    several = len(loaders.loaders) > 1
    outputs: list[dict[str, Any]] = []
    with evaluation_mode(run, prefix, loaders):
        hooks.call(f"on_{prefix}_start")
        hooks.call(f"on_{prefix}_epoch_start")
        step = step_function(run, f"{prefix}_step", several)
        for index, (loader, limit) in enumerate(zip(loaders.loaders, loaders.limits, strict=True)):
            evaluate_loader(run, loader, limit, index if several else None, prefix=prefix, step=step, results=results)
            outputs.append(loader_metrics(run, results))
        results.dataloader_idx, results.batch, results.in_batches, results.is_empty = None, None, False, False
        hooks.call(f"on_{prefix}_epoch_end")
        run.reduce_epoch(results)
        trainer.metrics.refresh(results)
        at_end = {} if trainer.sanity_checking else results.collect(on_step=False).log
        for output in outputs:
            output.update(at_end)
        if not trainer.sanity_checking:
            run.send({name: value for output in [*outputs, at_end] for name, value in output.items()})
        if trainer.validating and run.state.fn == "fit":
            run.progress.tail = "plateau"  # A checkpoint written in the next hook does not validate again.
        hooks.call(f"on_{prefix}_end")
        results.reset()
    return [to_floats(scalars(output, needed=False)) for output in outputs]


def evaluate_loader(
    run: Run, loader: Any, limit: float, index: int | None, *, prefix: str, step: Callable[..., Any], results: Results
) -> None:
    """Walk one loader; `index` is None when it is the only one."""
    hook_start, hook_end = run.hooks[f"on_{prefix}_batch_start"], run.hooks[f"on_{prefix}_batch_end"]
    rest = () if index is None else (index,)
    step_name, output, batch_idx = f"{prefix}_step", None, -1
    seen = run.seen_batches.get(index or 0, 0)
    results.dataloader_idx, results.batch = index, None
    for batch_idx, batch in enumerate(run.hooks.waiting(f"{prefix}_dataloader_next", loader) if limit else ()):
        batch = run.transfer(batch, index or 0)
        results.start_batch(batch, index)
        if hook_start is not None:
            hook_start(batch, batch_idx, *rest)
        results.hook = step_name
        output = step(batch, batch_idx, *rest)
        results.hook = None
        if torch.is_grad_enabled() and not run.parity:  # A step may turn gradients on for itself, not for the next.
            torch.set_grad_enabled(False)
        if hook_end is not None:
            hook_end(output, batch, batch_idx, *rest)
        if results.any_step:
            send_steps(run, results, seen + batch_idx)
        if batch_idx + 1 >= limit:
            break
    if not run.trainer.sanity_checking:
        run.seen_batches[index or 0] = seen + batch_idx + 1
    results.in_batches, results.is_empty = False, results.batch is None
    if isinstance(output, dict) and not results.records and "unlogged" in run.trainer.preflight:
        hint_at_unlogged(run, prefix, output)


def hint_at_unlogged(run: Run, prefix: str, output: dict[Any, Any]) -> None:
    """Say that the numbers which a step returned are lost, when it logs nothing and nobody reads what it returns."""
    numbers = [name for name, value in output.items() if is_number(value)]
    others = [callback for callback in run.hooks.callbacks if callback.role == ""]
    hooks = [f"on_{prefix}_{end}" for end in ("batch_end", "epoch_end", "end")]
    is_read = any(run.hooks.module_overrides(h) or any(overrides(o, h, Callback) for o in others) for h in hooks)
    if numbers and not is_read:
        rank_zero_warn(
            f"`{type(run.module).__name__}.{prefix}_step` returned {numbers} and logged nothing, so these values are "
            f"lost. Log them: `self.log({str(numbers[0])!r}, ...)`, or read them in `{hooks[0]}(outputs, ...)`. "
            "Turn this check off: `Trainer(preflight={'unlogged': False})`."
        )


def send_steps(run: Run, results: Results, step: int) -> None:
    """Log step values of evaluation at their own axis: batches of this loader seen during the whole fit."""
    run.trainer.metrics.refresh(results)
    if not run.trainer.sanity_checking:
        run.send(results.collect(on_step=True).log, step=step)


def loader_metrics(run: Run, results: Results) -> dict[str, Any]:
    """Return the epoch metrics of the loader just walked."""
    run.reduce_epoch(results)
    if run.trainer.sanity_checking:
        return {}
    run.trainer.metrics.refresh(results)
    return dict(results.collect(on_step=False).log)


@contextlib.contextmanager
def evaluation_mode(run: Run, prefix: str, loaders: Loaders) -> Iterator[None]:
    """Begin with loaders; the module is in evaluation mode, and every submodule in its own mode again afterwards."""
    module, hooks = run.module, run.hooks
    run.trainer.current_loaders = loaders
    set_epoch(samplers_of(flattened(loaders.nest)), run.progress.epoch)
    modes = [(child, child.training) for child in module.modules()]
    hooks.method(f"on_{prefix}_model_eval")()
    yield
    restore = f"on_{prefix}_model_train"
    if hasattr(type(module), restore) and hooks.module_overrides(restore):
        hooks.method(restore)()
        return
    for child, mode in modes:
        child.training = mode


def step_function(run: Run, name: str, several: bool) -> Callable[..., Any]:
    """Return the evaluation step as a function of (batch, batch_idx[, dataloader_idx]), decided once.

    Raises:
        RuntimeError: The signature does not fit the number of loaders.
    """
    module, function = run.module, getattr(run.module, name)
    arguments = step_arguments(function, ("batch_idx", "dataloader_idx") if several else ("batch_idx",))
    check_signature(function, f"{type(module).__name__}.{name}", several)
    function = run.hooks.wrap(name, run.strategy.step_function(name) if run.strategy.wraps_steps else function)
    context = run.precision.forward_context if run.precision.autocasts else None

    def step(*given: Any) -> Any:
        if context is None:
            return function(*arguments(*given))
        with context():
            return function(*arguments(*given))

    return step


def check_signature(function: Callable[..., Any], name: str, several: bool) -> None:
    """Refuse a step that cannot tell its loaders apart, or waits for an index that does not come."""
    parameters = parameters_of(function)
    takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    index = parameters.get("dataloader_idx")
    if several and index is None and not takes_any and len(parameters) < 3:
        raise RuntimeError(
            f"There are several loaders, but `{name}` has no `dataloader_idx`. Add `dataloader_idx=0` to its arguments."
        )
    if not several and index is not None and index.default is index.empty:
        raise RuntimeError(
            f"There is one loader, but `{name}` requires `dataloader_idx`. Give it a default: `dataloader_idx=0`."
        )


def can_validate(run: Run) -> bool:
    """Return whether fit has anything to validate with: a step and loaders."""
    return run.hooks.module_overrides("validation_step") and has_loader(run, "val")
