"""Train a new head first, then let the pretrained layers follow.

Owns: freezing before training, unfreezing at an epoch, and their state in a checkpoint.
Does not own: which layers; a subclass says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..distributed import rank_zero_info, rank_zero_warn
from ..durations import counted
from ..errors import MisconfigurationException
from ..hooks import Callback

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

Modules = nn.Module | Iterable["Modules"]


class BaseFinetuning(Callback):
    """Freeze layers before training and unfreeze them later; override `freeze_before_training` and `finetune_function`.

    Give `configure_optimizers` only what trains from the start: `filter(lambda p: p.requires_grad, self.parameters())`.

    Example:
        >>> class UnfreezeLater(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.features)
        ...
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 5:
        ...             self.unfreeze_and_add_param_group(pl_module.features, optimizer, lr=1e-4)
    """

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[int, list[dict[str, Any]]] = {}
        self._trainable: list[str] = []
        self._tracking: list[str] = []
        self._is_restored = False

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what shall not train from the start; runs in `setup`, before `configure_optimizers`."""
        raise NotImplementedError(f"`{type(self).__name__}` does not define `freeze_before_training(pl_module)`.")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze, or change learning rates; runs at every epoch's start, for every optimizer."""
        raise NotImplementedError(f"`{type(self).__name__}` does not define `finetune_function(...)`.")

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """Return every module of the nest, once, that has parameters of its own or no children."""
        if isinstance(modules, nn.Module):
            return [m for m in modules.modules() if not list(m.children()) or m._parameters]
        return list(dict.fromkeys(m for inner in modules for m in BaseFinetuning.flatten_modules(inner)))

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters that train (or do not, `requires_grad=False`), without batch norms if not `train_bn`."""
        for module in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(module, _BatchNorm):
                yield from (p for p in module.parameters(recurse=False) if p.requires_grad == requires_grad)

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Unfreeze parameters, and let batch norms collect statistics."""
        for module in BaseFinetuning.flatten_modules(modules):
            _set_trainable(module, True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters a module holds itself; a batch norm stops collecting statistics."""
        _set_trainable(module, False)

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze modules; with `train_bn` their batch norms go on training."""
        for module in BaseFinetuning.flatten_modules(modules):
            _set_trainable(module, train_bn and isinstance(module, _BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return the parameters that the optimizer does not have yet; warn if there are others."""
        present = {id(p) for group in optimizer.param_groups for p in group["params"]}
        params = list(params)
        new = [p for p in params if id(p) not in present]
        if len(new) < len(params):
            rank_zero_warn(
                f"{len(params) - len(new)} of {len(params)} unfrozen parameters are in `{type(optimizer).__name__}` "
                "already and keep their group. In `configure_optimizers` give it only what trains from the start: "
                "`filter(lambda p: p.requires_grad, self.parameters())`."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze modules and give their parameters to the optimizer as a new group.

        Args:
            modules: What to unfreeze.
            optimizer: Gets the new group.
            lr: Its learning rate; None: that of the first group divided by `initial_denom_lr`.
            initial_denom_lr: See `lr`.
            train_bn: Also train batch norms.
        """
        BaseFinetuning.make_trainable(modules)
        params = BaseFinetuning.filter_params(modules, train_bn=train_bn)
        new = BaseFinetuning.filter_on_optimizer(optimizer, params)
        for module in BaseFinetuning.flatten_modules(modules):
            if not train_bn and isinstance(module, _BatchNorm):
                module.requires_grad_(False)  # no optimizer gets them
        if new:
            rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else float(lr)
            optimizer.add_param_group({"params": new, "lr": rate})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, before the optimizers are made."""
        if stage == "fit":
            self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring back the groups, and what trains, of the run that is continued; its optimizer state is loaded next."""
        if not self._is_restored:
            return
        self._is_restored = False
        parameters = dict(pl_module.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self._trainable)
        for name, module in pl_module.named_modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = name in self._tracking
        for index, optimizer in enumerate(trainer.optimizers):
            if index in self._groups:
                known = len(optimizer.param_groups)
                optimizer.param_groups = [
                    {**group, "params": [parameters[name] for name in group["params"]]} for group in self._groups[index]
                ]
                _extend_schedulers(trainer, optimizer, known)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call `finetune_function` for every optimizer, and note what it has done."""
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        for index, optimizer in enumerate(trainer.optimizers):
            known = len(optimizer.param_groups)
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            _extend_schedulers(trainer, optimizer, known)
            groups: list[dict[str, Any]] = optimizer.param_groups
            self._groups[index] = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]
        self._trainable = [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
        self._tracking = [
            name for name, m in pl_module.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizers' groups by parameter names, and what trains."""
        return {"internal_optimizer_metadata": self._groups, "trainable": self._trainable, "tracking": self._tracking}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for `on_fit_start`."""
        self._groups = state_dict["internal_optimizer_metadata"]
        self._trainable = state_dict.get("trainable", [])
        self._tracking = state_dict.get("tracking", [])
        self._is_restored = bool(self._groups and self._trainable)


def _set_trainable(module: nn.Module, trains: bool) -> None:
    if isinstance(module, _BatchNorm):
        module.track_running_stats = trains
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = trains


def _extend_schedulers(trainer: Trainer, optimizer: Optimizer, known: int) -> None:
    """Give the optimizer's schedulers what they keep for each group: as the first group's, scaled to the new rate.

    torch's LambdaLR and OneCycleLR fail otherwise once a group was added.
    """
    first, added = optimizer.param_groups[0], optimizer.param_groups[known:]
    if not added:
        return
    for group in added:
        ratio = group["lr"] / first["lr"] if first["lr"] else 1.0
        for key in {"initial_lr", "max_lr", "min_lr"} & first.keys():
            group.setdefault(key, first[key] * ratio)
        for key in {"base_momentum", "max_momentum"} & first.keys():
            group.setdefault(key, first[key])
    for config in trainer.lr_scheduler_configs:
        for scheduler in [config.scheduler, *getattr(config.scheduler, "_schedulers", [])]:
            owner = getattr(scheduler, "optimizer", None)
            if owner is not None and owner.param_groups is optimizer.param_groups:
                _extend(scheduler, [group.get("initial_lr", group["lr"]) for group in added])


def _extend(scheduler: Any, rates: list[float]) -> None:
    for attribute in ("base_lrs", "lr_lambdas", "min_lrs"):
        if values := getattr(scheduler, attribute, None):
            new = rates if attribute == "base_lrs" else [values[-1]] * len(rates)
            setattr(scheduler, attribute, [*values, *new])


def multiplicative(epoch: int) -> float:
    """Double the backbone's learning rate in every epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Freeze `pl_module.backbone`, unfreeze it at an epoch with a small learning rate, and raise that epoch by epoch.

    Args:
        unfreeze_backbone_at_epoch: Epoch (from 0) at which it begins to train, as a number or "10ep".
        lambda_func: Epoch -> factor of the backbone's learning rate from one epoch to the next.
        backbone_initial_ratio_lr: First learning rate, as part of the first group's.
        backbone_initial_lr: First learning rate itself; None: by the ratio.
        should_align: Never let the backbone's learning rate pass the first group's.
        initial_denom_lr: Unused when a rate is known, which is always; kept for its place in the signature.
        train_bn: Train batch norms, also while the rest is frozen.
        verbose: Log the learning rates at every epoch.
        rounding: Digits of these.

    Raises:
        MisconfigurationException: In a run: the module has no `backbone` that is a `nn.Module`.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int | str = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = counted(unfreeze_backbone_at_epoch, "unfreeze_backbone_at_epoch", "epochs")
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone."""
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise MisconfigurationException(
                f"`BackboneFinetuning` freezes `{type(pl_module).__name__}.backbone`, which is not a module there "
                f"(modules it has: {[name for name, _ in pl_module.named_children()]}). "
                "Name the pretrained part `self.backbone`, or subclass `BaseFinetuning`."
            )
        # The reference lets batch norms train while the rest is frozen, whatever `train_bn` says.
        self.freeze(pl_module.backbone, train_bn=self.train_bn or pl_module.trainer.parity)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the backbone at its epoch, and set its learning rate from then on."""
        rate = optimizer.param_groups[0]["lr"]
        if epoch == self.unfreeze_backbone_at_epoch:
            first = self.backbone_initial_lr
            self.previous_backbone_lr = rate * self.backbone_initial_ratio_lr if first is None else first
            self.unfreeze_and_add_param_group(
                pl_module.backbone, optimizer, self.previous_backbone_lr, self.initial_denom_lr, self.train_bn
            )
        elif epoch > self.unfreeze_backbone_at_epoch and self.previous_backbone_lr is not None:
            raised = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            self.previous_backbone_lr = min(raised, rate) if self.should_align else raised
            optimizer.param_groups[-1]["lr"] = self.previous_backbone_lr
        else:
            return
        if self.verbose:
            digits = self.rounding
            rank_zero_info("lr %s, backbone lr %s", round(rate, digits), round(self.previous_backbone_lr, digits))

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the backbone's learning rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
