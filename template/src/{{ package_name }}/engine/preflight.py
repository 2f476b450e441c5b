"""Mistakes that show in the first steps only, and a loss that is no number: said at once, with the name of the thing.

Owns: the checks by name, those that need optimizers, a batch or a few steps, and the watch over the loss. Does not own:
mistakes that can be seen without running anything (`verify`).

    before the first batch: "optimizer" · "eval_mode"
    first steps:            "scheduler" · "gradients" · "graph"
    every step:             "loss", read at once on a CPU; elsewhere many together, because reading one is a device sync
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR

from .distributed import rank_zero_warn
from .errors import MisconfigurationException, NonFiniteLossError, did_you_mean

CHECKS = {
    "hooks": "methods whose name is nearly that of a hook",
    "optimizer": "parameters that no optimizer has, layers in a plain list",
    "gradients": "parameters that get no gradient in the first steps",
    "loss": "a loss that is nan or infinite: stops, and names the batch and the first module",
    "unlogged": "metrics that validation_step or test_step returns and nobody logs",
    "eval_mode": "a model left in evaluation mode",
    "scheduler": "a schedule made for steps that steps once an epoch",
    "graph": "a list or a sum of losses that keeps the graph of every batch",
}
STEPS = 5  # batches after which the first steps are over
_READ_TOGETHER = 50  # losses on an accelerator
_SCALED_PATIENCE = 10  # such losses, under a gradient scaler, which leaves their steps out by itself
_INTERNAL = frozenset(vars(nn.Module())) - {"_buffers"}
_MOST_NODES = 20_000
_MOST_NAMES = 6


def select_checks(value: Any, only_hooks: bool = False) -> frozenset[str]:
    """Return the names of the checks that `Trainer(preflight=...)` means.

    Args:
        value: True: all; False: none; a dict of name -> bool: all but those turned off.
        only_hooks: Leave all out but "hooks" (`parity`, `barebones`).

    Raises:
        MisconfigurationException: It is something else, or a name does not exist.
    """
    if isinstance(value, bool):
        value = dict.fromkeys(CHECKS, value)
    if not isinstance(value, Mapping) or not all(isinstance(on, bool) for on in value.values()):
        raise MisconfigurationException(
            f"`Trainer(preflight={value!r})`: accepted are True, False and a dict such as {{'gradients': False}}."
        )
    for name in value:
        if name not in CHECKS:
            raise MisconfigurationException(
                f"`Trainer(preflight={value!r})`: there is no check {name!r}.{did_you_mean(name, CHECKS)} "
                f"There are: {', '.join(CHECKS)}."
            )
    return frozenset(name for name in CHECKS if value.get(name, True) and (name == "hooks" or not only_hooks))


@contextlib.contextmanager
def preflight(run: Any, checks: frozenset[str]) -> Iterator[None]:
    """Watch a fit whose optimizers are made and whose first batch is yet to come; leaves nothing behind.

    Args:
        run: The fit.
        checks: Names of `CHECKS` that are on.

    Raises:
        NonFiniteLossError: The loss is nan or infinite.
    """
    watch = Preflight(run, checks)
    watch.begin()
    try:
        yield
        watch.settle()
        watch.read_losses()
    finally:
        watch.let_go()


class Preflight:
    """The checks of one fit; see `preflight`."""

    def __init__(self, run: Any, checks: frozenset[str]) -> None:
        self.run = run
        self.checks = checks
        self._calls = 0
        self._at_once = reads_at_once(run.strategy.root_device) or run.trainer.detect_anomaly
        self._plain: Callable[[Any, int], Any] = run.training_step
        self._step = self._watched if "loss" in checks else self._plain
        self._without_gradient: dict[str, nn.Parameter] = {}
        self._expected = 0
        self._graphs: dict[str, set[Any]] = {}
        self._growth: dict[str, int] = {}
        self._losses: list[tuple[Tensor, int, int]] = []
        self._bad = 0

    def begin(self) -> None:
        """Check what can be seen now, and watch the steps to come."""
        if "optimizer" in self.checks:
            _check_optimizer(self.run)
        if "eval_mode" in self.checks:
            _check_eval_mode(self.run.module)
        if self.checks & {"gradients", "graph", "scheduler", "loss"}:
            self.run.training_step = self._first_steps
        if "loss" in self.checks and not self.run.module.automatic_optimization:
            self._watch_backward()
        self._backward = self.run.backward
        if "gradients" in self.checks:
            self._watch_gradients()

    def _first_steps(self, batch: Any, batch_idx: int) -> Any:
        """Stand in for `training_step` until the first steps are over."""
        if self._calls == 0 and "scheduler" in self.checks:
            _check_schedulers(self.run)
        if self._calls > 0 and "graph" in self.checks:
            self._look_for_graphs()
        if self._calls == STEPS:
            self.settle()
            self.let_go()
            self.run.training_step = self._step
        self._calls += 1
        return self._step(batch, batch_idx)

    # The loss.

    def _watched(self, batch: Any, batch_idx: int) -> Any:
        """Stand in for `training_step`: the same, and a look at the loss."""
        output = self._plain(batch, batch_idx)
        if self._at_once and type(output) is Tensor and output.dim() == 0 and isfinite(output.item()):
            return output  # the usual one: this line is paid for at every step
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            return output
        if not self._at_once:
            self._keep(loss, batch_idx)
        elif loss.numel() == 1 and not isfinite(loss.item()):
            cause = _find_cause(self.run.module, batch, lambda: self._plain(batch, batch_idx))
            self._stop(loss.item(), self.run.progress.epoch, batch_idx, cause)
        return output

    def _watch_backward(self) -> None:
        """Under manual optimisation a step may return anything: look at what goes backward."""
        self._step, inner = self._plain, self.run.backward

        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            batch_idx = self.run.progress.batch_idx
            is_tensor = isinstance(loss, Tensor)  # else an object with a `backward` of its own
            if is_tensor and not self._at_once:
                self._keep(loss, batch_idx)
            elif is_tensor and loss.numel() == 1 and not isfinite(loss.item()):
                cause = _find_cause(self.run.module, self.run.train_results.batch)
                self._stop(loss.item(), self.run.progress.epoch, batch_idx, cause)
            inner(loss, *args, **kwargs)

        self.run.backward = backward

    def _keep(self, loss: Tensor, batch_idx: int) -> None:
        loss = loss.detach()
        if self.run.trainer.compile_options is not None:  # a CUDA graph writes into the same memory again
            loss = loss.clone()
        self._losses.append((loss, self.run.progress.epoch, batch_idx))
        if len(self._losses) == _READ_TOGETHER:
            self.read_losses()

    def read_losses(self) -> None:
        """Read the losses that wait on an accelerator, all at once."""
        losses, self._losses = self._losses, []
        values = torch.stack([loss.double().mean() for loss, *_ in losses]).tolist() if losses else []  # sync
        for value, (_, epoch, batch_idx) in zip(values, losses, strict=True):
            if not isfinite(value):
                self._stop(value, epoch, batch_idx, "`Trainer(detect_anomaly=True)` names the module, at some cost.")

    def _stop(self, value: float, epoch: int, batch_idx: int, cause: str) -> None:
        self._bad += 1
        if self.run.precision.scaler is not None and self._bad < _SCALED_PATIENCE:
            return
        raise NonFiniteLossError(
            f"The loss is {value} at epoch {epoch}, batch {batch_idx}. {cause} Look at that batch, lower the learning "
            "rate, or clip the gradients (`Trainer(gradient_clip_val=1.0)`)." + _switch("loss")
        )

    # Gradients and graphs.

    def _watch_gradients(self) -> None:
        # No hooks on the parameters: torch goes on asking for a hook that was removed, at every step.
        in_optimizer, inner = _in_optimizers(self.run), self._backward
        parameters = self.run.module.named_parameters()
        self._without_gradient = {n: p for n, p in parameters if p.requires_grad and id(p) in in_optimizer}
        self._expected = len(self._without_gradient)

        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            inner(loss, *args, **kwargs)
            self._without_gradient = {n: p for n, p in self._without_gradient.items() if p.grad is None}

        self.run.backward = backward

    def settle(self) -> None:
        """Say which parameters have got no gradient in the first steps."""
        without = list(self._without_gradient)
        if 0 < len(without) < self._expected:  # none at all: the steps returned None
            rank_zero_warn(
                f"No gradient has come to {_listed(without)} in the first {self._calls} batches, so they do not train. "
                "Are they used in `training_step`, with no `detach()` and no `no_grad()` on the way to the loss? "
                "Freeze them on purpose with `requires_grad_(False)`." + _switch("gradients")
            )

    def let_go(self) -> None:
        """Leave the backward pass alone, and forget the graphs."""
        self.run.backward = self._backward
        self._without_gradient, self._graphs = {}, {}

    def _look_for_graphs(self) -> None:
        """Warn of an attribute whose graph holds that of the batch before, three times in a row."""
        for name, nodes in _graphs(self.run):
            before = self._graphs.get(name)
            grows = bool(before) and before < nodes  # type: ignore[operator]
            self._growth[name] = self._growth.get(name, 0) + 1 if grows else 0
            self._graphs[name] = nodes
            if self._growth[name] == STEPS - 2:
                rank_zero_warn(
                    f"`{name}` keeps the graph of every batch, so memory grows until it is full. Keep numbers: "
                    "`loss.detach()` in place of `loss`." + _switch("graph")
                )


def reads_at_once(device: torch.device) -> bool:
    """Return whether reading a value there makes nobody wait."""
    return device.type == "cpu"


def _switch(check: str) -> str:
    return f" Turn this check off: `Trainer(preflight={{{check!r}: False}})`."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMES]) + more


def _in_optimizers(run: Any) -> set[int]:
    """Return the ids of all parameters that an optimizer has, the user's own references among them."""
    own = [value for value in vars(run.module).values() if isinstance(value, Optimizer)]
    return {id(p) for optimizer in (*run.optimizers, *own) for group in optimizer.param_groups for p in group["params"]}


def _check_optimizer(run: Any) -> None:
    known = _in_optimizers(run)
    left_out = [name for name, p in run.module.named_parameters() if p.requires_grad and id(p) not in known]
    if known and left_out:
        rank_zero_warn(
            f"No optimizer has {_listed(left_out)}, so they never change. Give them to one in `configure_optimizers`, "
            "or freeze them with `requires_grad_(False)`." + _switch("optimizer")
        )
    registered = {id(p) for p in run.module.parameters()}
    for path, owner in run.module.named_modules():
        for name, value in vars(owner).items():
            hidden = [part for part in _inside(value, nn.Module) if name not in _INTERNAL]
            if any(p.requires_grad and id(p) not in registered for part in hidden for p in part.parameters()):
                kind = "nn.ModuleDict" if isinstance(value, dict) else "nn.ModuleList"
                rank_zero_warn(
                    f"`{f'{path}.' if path else ''}{name}` holds layers in a `{type(value).__name__}`, which torch "
                    f"does not look into: they are not trained, moved or saved. Use `{kind}`." + _switch("optimizer")
                )


def _check_eval_mode(module: nn.Module) -> None:
    if not any(child.training for child in module.modules()) and any(p.requires_grad for p in module.parameters()):
        rank_zero_warn(
            f"`{type(module).__name__}` was left in evaluation mode, in which dropout is off and batch norms do not "
            "learn. It trains in training mode now; for parts that shall stay, call `.eval()` in `on_train_start`."
            + _switch("eval_mode")
        )
        module.train()
        return
    seen: set[nn.Module] = set()
    for name, child in module.named_modules():
        parts = set(child.modules())
        if child in seen or any(part.training for part in parts):
            continue
        seen |= parts  # a part of a frozen body, or of a teacher, sleeps with it
        has_dropout = any(isinstance(part, nn.Dropout) and part.p for part in parts)
        if has_dropout and all(p.requires_grad for p in child.parameters()):
            rank_zero_warn(
                f"`{name}` is in evaluation mode although its parameters train: its dropout is off. If that is not "
                f"meant, call `self.{name}.train()` in `__init__`, after loading." + _switch("eval_mode")
            )
            return


def _check_schedulers(run: Any) -> None:
    trainer = run.trainer
    steps_per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else trainer.max_steps / steps_per_epoch
    if epochs < 1 or not 1 < steps_per_epoch < float("inf"):
        return
    for config in run.schedulers:
        horizon = _horizon(config.scheduler)
        made_for_steps = horizon > 2 * epochs and 0.5 <= horizon / (epochs * steps_per_epoch) <= 1.5
        if config.interval == "epoch" and (made_for_steps or isinstance(config.scheduler, CyclicLR)):
            rank_zero_warn(
                f"`{type(config.scheduler).__name__}` is made for {horizon:.0f} steps, but steps once an epoch, "
                f"{ceil(epochs)} times in all. Return {{'scheduler': ..., 'interval': 'step'}}." + _switch("scheduler")
            )


def _horizon(scheduler: Any) -> float:
    """Return after how many of its own steps a schedule is over; 0 where it does not say."""
    lengths = [getattr(scheduler, name, 0) for name in ("T_max", "total_iters", "total_steps", "total_size")]
    lengths += [*getattr(scheduler, "_milestones", ()), *getattr(scheduler, "milestones", ())]
    for formula in getattr(scheduler, "lr_lambdas", ()):  # the warm-ups of transformers
        lengths.append(getattr(formula, "keywords", {}).get("num_training_steps", 0))
    inner = [_horizon(part) for part in getattr(scheduler, "_schedulers", ())]
    return max((float(length) for length in [*lengths, *inner] if isinstance(length, (int, float))), default=0.0)


def _graphs(run: Any) -> Iterator[tuple[str, set[Any]]]:
    """Yield each attribute that holds tensors with a graph, and the nodes of it."""
    owners = [(path or type(run.module).__name__, m) for path, m in run.module.named_modules()]
    owners += [(type(other).__name__, other) for other in (*run.hooks.callbacks, run.datamodule) if other is not None]
    for path, owner in owners:
        for name, value in vars(owner).items():
            tensors = [] if name in _INTERNAL else [t for t in _inside(value, Tensor) if t.grad_fn is not None]
            if tensors and len(nodes := _reachable(tensors)) < _MOST_NODES:
                yield f"{path}.{name}", nodes


def _inside(value: Any, kind: type, depth: int = 3) -> list[Any]:
    """Return the tensors or modules in a value or a nest; of a long list the last ones."""
    if isinstance(value, kind) and (kind is not nn.Module or depth < 3):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if depth == 0 or type(value) not in (list, tuple):
        return []
    return [found for item in value[-16:] for found in _inside(item, kind, depth - 1)]


def _reachable(tensors: list[Tensor]) -> set[Any]:
    nodes: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    while waiting and len(nodes) < _MOST_NODES:
        node = waiting.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [following for following, _ in node.next_functions]
    return nodes


def _find_cause(module: nn.Module, batch: Any, again: Callable[[], Any] | None = None) -> str:
    """Say where the first value that is no number came from; `again` runs the step, with a look at every module."""
    if not _finite(batch):
        return "The batch itself holds values that are nan or infinite."
    broken = [name for name, p in module.named_parameters() if not _finite(p)]
    if broken:
        return f"The gradients of an earlier step were nan or infinite, and so are now {_listed(broken)}."
    found: list[str] = []
    names = {child: name for name, child in module.named_modules() if name}

    def look(child: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _finite(output):
            which = "output" if _finite(inputs) else "input"
            found.append(f"The first module whose {which} is not finite: `{names[child]}` ({type(child).__name__}).")

    hooks = [child.register_forward_hook(look) for child in names]
    with contextlib.suppress(Exception):  # the answer is worth more than an error of this second pass
        again() if again is not None else None
    for hook in hooks:
        hook.remove()
    return found[0] if found else "Every module gave finite values: it came up in `training_step` itself."


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return all(_finite(item) for item in value) if isinstance(value, (list, tuple)) else True
