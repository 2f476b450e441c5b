"""Names of Lightning 1.x, translated to today's, with one notice each.

Owns: the table of old arguments and hooks. Does not own: anything that today's names do. Delete this file, and its
uses in `trainer` and `session`, when no article of 2021 matters to the team any more.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .distributed import rank_zero_deprecation, rank_zero_warn
from .errors import EndsAtCaller, MisconfigurationException, did_you_mean
from .hooks import Callback
from .metrics import as_tensor, is_number
from .run import Run
from .step import forward_backward, loss_of
from .transfer import apply_to_collection

_Translation = Callable[[Any], dict[str, Any]]

_KEPT = {
    "progress_bar_refresh_rate": "callbacks=[TQDMProgressBar(refresh_rate=...)], or enable_progress_bar=False",
    "resume_from_checkpoint": "trainer.fit(model, ckpt_path=...)",
    "auto_lr_find": "Tuner(trainer).lr_find(model), or callbacks=[LearningRateFinder()]",
    "auto_scale_batch_size": "Tuner(trainer).scale_batch_size(model), or callbacks=[BatchSizeFinder()]",
    "stochastic_weight_avg": "callbacks=[StochasticWeightAveraging(...)]",
    "multiple_trainloader_mode": "trainer.fit(model, CombinedLoader(loaders, mode))",
}
"""Arguments of 1.x that need the trainer itself -> how to say it today."""

_GONE = """amp_backend amp_level auto_select_gpus flush_logs_every_n_steps log_gpu_memory move_metrics_to_cpu
prepare_data_per_node process_position track_grad_norm truncated_bptt_steps""".split()


def _keep(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


RENAMED: dict[str, tuple[_Translation, str]] = {
    "gpus": (lambda n: _accelerator("gpu", n), "accelerator='gpu', devices=..."),
    "tpu_cores": (lambda n: _accelerator("tpu", n), "accelerator='tpu', devices=..."),
    "ipus": (lambda n: _accelerator("ipu", n), "another accelerator: PyTorch for IPUs has ended"),
    "num_processes": (lambda n: {"accelerator": "cpu", "devices": n}, "accelerator='cpu', devices=..."),
    "weights_summary": (
        lambda value: {"enable_model_summary": value is not None},
        "enable_model_summary=..., or callbacks=[ModelSummary(max_depth=...)]",
    ),
    "checkpoint_callback": (
        lambda value: {"enable_checkpointing": value} if isinstance(value, bool) else {"callbacks+": value},
        "enable_checkpointing=..., or callbacks=[ModelCheckpoint(...)]",
    ),
    "early_stop_callback": (
        lambda value: {"callbacks+": value} if value not in (None, True, False) else {},
        "callbacks=[EarlyStopping(...)]",
    ),
    "replace_sampler_ddp": (lambda value: {"use_distributed_sampler": value}, "use_distributed_sampler=..."),
    "distributed_backend": (lambda value: _strategy(value), "strategy=..."),
    "terminate_on_nan": (lambda value: {"detect_anomaly": bool(value)}, "detect_anomaly=True"),
    "weights_save_path": (lambda value: {"default_root_dir": str(value)}, "default_root_dir=..."),
    "reload_dataloaders_every_epoch": (
        lambda value: {"reload_dataloaders_every_n_epochs": int(value)},
        "reload_dataloaders_every_n_epochs=1",
    ),
    **{name: (functools.partial(_keep, name), today) for name, today in _KEPT.items()},
    **dict.fromkeys(_GONE, (lambda value: {}, "")),
}
"""Argument of 1.x -> (what it becomes, how to say it today)."""


def _strategy(name: str | None) -> dict[str, Any]:
    old: dict[Any, dict[str, Any]] = {"ddp_cpu": {"strategy": "ddp", "accelerator": "cpu"}, None: {}}
    successors = {"dp": "ddp", "ddp2": "ddp", "ddp_sharded": "fsdp", "fsdp_native": "fsdp"}
    return old.get(name, {"strategy": successors.get(str(name), name)})


def _accelerator(name: str, count: Any) -> dict[str, Any]:
    return {"accelerator": name, "devices": count} if count not in (None, 0, [], "0") else {"accelerator": "cpu"}


def accepts_old_names(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate `Trainer.__init__`: take 1.x arguments and `PL_TRAINER_*` variables, and keep the signature honest."""
    known = set(inspect.signature(init).parameters) - {"self"}

    @functools.wraps(init)
    def translated(self: Any, *args: Any, **kwargs: Any) -> None:
        with EndsAtCaller():
            if args:
                raise TypeError("`Trainer` takes keyword arguments only: `Trainer(max_epochs=10)`.")
            kept: dict[str, Any] = {}
            rename_values(kwargs, kept)
            for name in [name for name in kwargs if name not in known]:
                translate(name, kwargs.pop(name), kwargs, kept, known)
            for name in known - kwargs.keys():
                value = os.environ.get(f"PL_TRAINER_{name.upper()}")
                if value is not None:
                    kwargs[name] = read_variable(value)
            self._old_arguments = kept
            init(self, **kwargs)

    return translated


def rename_values(kwargs: dict[str, Any], kept: dict[str, Any]) -> None:
    """Take arguments whose values are of 1.x, not their names: rename them, or leave out those that say nothing."""
    if str(kwargs.get("accelerator")).startswith(("ddp", "dp")):
        kwargs["distributed_backend"] = kwargs.pop("accelerator")
    if kwargs.get("strategy") in ("dp", "ddp2", "ddp_cpu", "ddp_sharded", "fsdp_native"):
        kwargs["distributed_backend"] = kwargs.pop("strategy")
    if isinstance(kwargs.get("accumulate_grad_batches"), dict):
        kept["accumulate_schedule"] = kwargs.pop("accumulate_grad_batches")
        rank_zero_deprecation(
            "`Trainer(accumulate_grad_batches={...})` is of Lightning 1.x; today: "
            "callbacks=[GradientAccumulationScheduler({...})]."
        )
    for name in ("accelerator", "strategy"):
        if name in kwargs and kwargs[name] is None:
            del kwargs[name]


def translate(name: str, value: Any, kwargs: dict[str, Any], kept: dict[str, Any], known: set[str]) -> None:
    """Replace one argument of 1.x in `kwargs`; those that need the trainer itself go to `kept`.

    Raises:
        TypeError: No version ever had it.
    """
    if name not in RENAMED:
        raise TypeError(
            f"`Trainer` has no argument `{name}`.{did_you_mean(name, known)} Accepted are: {', '.join(sorted(known))}."
        )
    become, today = RENAMED[name]
    rank_zero_deprecation(
        f"`Trainer({name}=...)` is of Lightning 1.x; " + (f"today: {today}." if today else "it has no effect any more.")
    )
    for key, translated in become(value).items():
        if key in _KEPT:
            kept[key] = translated
        elif key == "callbacks+":
            given = kwargs.get("callbacks") or []
            kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), translated]
        else:
            kwargs.setdefault(key, translated)


def read_variable(text: str) -> Any:
    """Return the value of a `PL_TRAINER_*` variable: a Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


OLD_HOOKS = """training_epoch_end validation_epoch_end test_epoch_end on_epoch_start on_epoch_end training_step_end
validation_step_end test_step_end""".split()


def old_hooks_of(module: Any) -> list[str]:
    """Return the hooks of 1.x that a module defines."""
    return [name for name in OLD_HOOKS if callable(getattr(module, name, None))]


class OldHooks(Callback):
    """Serves a module's hooks of 1.x: `*_epoch_end(outputs)`, `on_epoch_*` and `*_step_end`.

    Outputs of every step are kept until the epoch ends: a list of what the step returned (losses detached), a list of
    such lists with several loaders.

    Args:
        module: The module that defines them.
    """

    def __init__(self, module: Any) -> None:
        self.defined = set(old_hooks_of(module))
        self.outputs: dict[int, list[Any]] = {}
        self.chained: list[str] = []
        names = ", ".join(f"`{name}`" for name in sorted(self.defined))
        rank_zero_deprecation(
            f"`{type(module).__name__}` defines {names} of Lightning 1.x, which still work. Today: `on_*_epoch_end`, "
            "with what you need collected in an attribute."
        )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let each `*_step` be followed by its `*_step_end`, for this call of the trainer."""
        self.defined, self.outputs = set(old_hooks_of(pl_module)), {}
        for kind in ("training", "validation", "test"):
            if f"{kind}_step_end" in self.defined:
                self._chain(pl_module, f"{kind}_step", f"{kind}_step_end")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was, to be copied, pickled and used again."""
        while self.chained:
            pl_module.__dict__.pop(self.chained.pop(), None)

    def _chain(self, module: Any, step: str, end: str) -> None:
        if step in self.chained:
            return
        first, second = getattr(module, step), getattr(module, end)

        @functools.wraps(first)
        def chained(*args: Any, **kwargs: Any) -> Any:
            return second(first(*args, **kwargs))

        module.__dict__[step] = chained
        self.chained.append(step)

    def _collect(self, stage: str, outputs: Any, dataloader_idx: int = 0) -> None:
        if f"{stage}_epoch_end" in self.defined and outputs is not None and (not isinstance(outputs, dict) or outputs):
            detached = apply_to_collection(outputs, lambda item: isinstance(item, Tensor), Tensor.detach)
            self.outputs.setdefault(dataloader_idx, []).append(detached)

    def _end(self, trainer: Any, module: Any, name: str) -> None:
        collected = [self.outputs[index] for index in sorted(self.outputs)]
        self.outputs = {}
        if name in self.defined:
            returned = getattr(module, name)(collected[0] if len(collected) == 1 else collected)
            _log_returned(module, returned, name)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Call `on_epoch_start`."""
        self.outputs = {}
        if "on_epoch_start" in self.defined:
            pl_module.on_epoch_start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the step's output."""
        self._collect("training", outputs)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call `training_epoch_end(outputs)` and `on_epoch_end`."""
        self._end(trainer, pl_module, "training_epoch_end")
        if "on_epoch_end" in self.defined:
            pl_module.on_epoch_end()

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to collect, with the training outputs put aside."""
        self._training, self.outputs = self.outputs, {}

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the step's output."""
        self._collect("test" if trainer.testing else "validation", outputs, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call `validation_epoch_end(outputs)`."""
        self._end(trainer, pl_module, "validation_epoch_end")
        self.outputs = self._training

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call `test_epoch_end(outputs)`."""
        self._end(trainer, pl_module, "test_epoch_end")


def _log_returned(module: Any, returned: Any, name: str) -> None:
    if not isinstance(returned, dict):
        return
    values = {**returned.get("log", {}), **{k: v for k, v in returned.items() if k not in ("log", "progress_bar")}}
    rank_zero_warn(f"`{name}` returned a dictionary; its numbers are logged. Today: `self.log_dict(...)`.")
    module.log_dict({name: as_tensor(value) for name, value in values.items() if is_number(value)})


def takes_turns(run: Run) -> bool:
    """Return whether optimizers are served one by one, as in 1.x: by `optimizer_idx` or by their "frequency".

    Raises:
        MisconfigurationException: `training_step` asks for `optimizer_idx` under manual optimisation.
    """
    parameter = inspect.signature(run.module.training_step).parameters.get("optimizer_idx")
    required = parameter is not None and parameter.default is parameter.empty
    if required and not run.module.automatic_optimization:
        raise MisconfigurationException(
            "`training_step` asks for `optimizer_idx`, which does not exist under manual optimisation. Take it out; "
            "use `self.optimizers()`."
        )
    several = len(run.optimizers) > 1 and (parameter is not None or bool(run.frequencies))
    return run.module.automatic_optimization and (required or several)


def step_in_turns(run: Run, batch: Any, batch_idx: int, due: bool) -> Any:
    """Train on one batch with one pass for each optimizer, whose parameters alone are trainable in it."""
    everyone, plain, output = run.optimizers, run.training_step, None
    asks = "optimizer_idx" in inspect.signature(run.module.training_step).parameters
    for index in turn(run.frequencies, batch_idx, len(everyone)):
        optimizer = everyone[index]
        with run.module.toggled_optimizer(optimizer):
            run.optimizers = [optimizer]
            run.training_step = functools.partial(_with_index, run, index) if asks else plain
            try:
                output = _pass(run, index, batch, batch_idx, due)
            finally:
                run.optimizers, run.training_step = everyone, plain
    run.progress.global_step += due
    return output


def _pass(run: Run, index: int, batch: Any, batch_idx: int, due: bool) -> Any:
    """Train one optimizer on a batch."""
    optimizer, outputs = run.step_optimizers[index], []

    def closure() -> Tensor | None:
        outputs.append(forward_backward(run, batch, batch_idx))
        return loss_of(outputs[-1])

    if due and run.hooks.module_overrides("optimizer_step"):
        run.hooks.method("optimizer_step")(run.progress.epoch, batch_idx, optimizer, closure)
    else:
        closure()
        if due:
            optimizer.step()
    return outputs[-1] if outputs else None


def _with_index(run: Run, index: int, batch: Any, batch_idx: int) -> Any:
    function = run.strategy.step_function("training_step") if run.strategy.wraps_steps else run.module.training_step
    with run.precision.forward_context() if run.precision.autocasts else contextlib.nullcontext():
        return function(batch, batch_idx, optimizer_idx=index)


def turn(frequencies: list[int], batch_idx: int, count: int) -> list[int]:
    """Return the optimizers whose turn a batch is: all of them, or by frequency the one it falls to."""
    if not frequencies:
        return list(range(count))
    position = batch_idx % sum(frequencies)
    return [next(index for index, end in enumerate(itertools.accumulate(frequencies)) if position < end)]
