"""Record the order of every module, callback and datamodule hook in a set of small runs.

    python -m tests.parity.record --framework lightning.pytorch --kind hooks --out DIR

Every event is a list `[who.hook, stage, current_epoch, global_step, extra]`:

- who: m = module, cb1/cb2 = first/second callback, es = EarlyStopping subclass, ck = ModelCheckpoint subclass,
  dm = datamodule, opt = the real optimizer;
- stage: "sanity", "train", "val", "test", "predict" or None;
- extra: small facts, as batch_idx, dataloader_idx, `module.training`, whether gradients are on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.parity.framework import Framework, words

MODULE_HOOKS = words(
    """
    configure_callbacks configure_model configure_optimizers prepare_data setup teardown train_dataloader
    val_dataloader test_dataloader predict_dataloader on_fit_start on_fit_end on_train_start on_train_end
    on_validation_start on_validation_end on_test_start on_test_end on_predict_start on_predict_end
    on_train_epoch_start on_train_epoch_end on_validation_epoch_start on_validation_epoch_end
    on_test_epoch_start on_test_epoch_end on_predict_epoch_start on_predict_epoch_end on_train_batch_start
    on_train_batch_end on_validation_batch_start on_validation_batch_end on_test_batch_start on_test_batch_end
    on_predict_batch_start on_predict_batch_end on_validation_model_zero_grad on_validation_model_eval
    on_validation_model_train on_test_model_eval on_test_model_train on_predict_model_eval on_before_zero_grad
    on_before_backward on_after_backward on_before_optimizer_step on_before_batch_transfer
    transfer_batch_to_device on_after_batch_transfer on_load_checkpoint on_save_checkpoint optimizer_step
    optimizer_zero_grad configure_gradient_clipping lr_scheduler_step backward training_step validation_step
    test_step predict_step
    """
)

CALLBACK_HOOKS = words(
    """
    setup teardown on_fit_start on_fit_end on_sanity_check_start on_sanity_check_end on_train_batch_start
    on_train_batch_end on_train_epoch_start on_train_epoch_end on_validation_epoch_start on_validation_epoch_end
    on_test_epoch_start on_test_epoch_end on_predict_epoch_start on_predict_epoch_end on_validation_batch_start
    on_validation_batch_end on_test_batch_start on_test_batch_end on_predict_batch_start on_predict_batch_end
    on_train_start on_train_end on_validation_start on_validation_end on_test_start on_test_end on_predict_start
    on_predict_end on_exception state_dict load_state_dict on_save_checkpoint on_load_checkpoint
    on_before_backward on_after_backward on_before_optimizer_step on_before_zero_grad
    """
)

DATAMODULE_HOOKS = words(
    """
    prepare_data setup teardown train_dataloader val_dataloader test_dataloader predict_dataloader
    on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer state_dict load_state_dict
    on_exception
    """
)

BUILT_IN_HOOKS = words(
    """
    on_train_epoch_end on_validation_end on_train_batch_end on_train_start on_train_end setup state_dict
    """
)
STEPS = ("training_step", "validation_step", "test_step", "predict_step")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
STAGES = {
    "sanity": "sanity_checking",
    "train": "training",
    "val": "validating",
    "test": "testing",
    "predict": "predicting",
}


class Recorder:
    """Collects events; it knows the trainer and the module of the current run."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []
        self.trainer: Any = None
        self.module: Any = None

    def add(self, who: str, hook: str, **extra: Any) -> None:
        """Append one event with the trainer's stage and counters."""
        trainer = self.trainer
        if trainer is None:
            self.events.append([f"{who}.{hook}", None, None, None, extra])
            return
        stage = next((name for name, flag in STAGES.items() if getattr(trainer, flag)), None)
        self.events.append([f"{who}.{hook}", stage, trainer.current_epoch, trainer.global_step, extra])

    def wrap(self, cls: type, who: str, hooks: list[str], skip: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Override `hooks` of `cls` by methods that record and then call the inherited ones."""
        for hook in hooks:
            if hook not in skip and hasattr(cls, hook):
                setattr(cls, hook, self._recorded(who, hook, getattr(cls, hook)))

    def _recorded(self, who: str, hook: str, inherited: Callable[..., Any]) -> Callable[..., Any]:
        def method(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.add(who, hook, **self._facts(who, hook, this, args, kwargs))
            return inherited(this, *args, **kwargs)

        method.__name__ = hook
        return method

    def _facts(self, who: str, hook: str, this: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if hook in STEPS:
            extra.update(
                module_training=this.training,
                grad=torch.is_grad_enabled(),
                inference=torch.is_inference_mode_enabled(),
                autocast=torch.is_autocast_enabled("cpu"),
            )
        ints = [x for x in args if isinstance(x, int) and not isinstance(x, bool)]
        if ints and hook not in ("optimizer_step", "optimizer_zero_grad"):
            extra["ints"] = ints
        words = [x for x in [*args, *kwargs.values()] if isinstance(x, str)]
        if words:
            extra["strs"] = words
        if hook == "on_train_batch_end" and who.startswith("cb"):
            extra["outputs"] = sorted(args[2]) if isinstance(args[2], dict) else type(args[2]).__name__
        if hook == "lr_scheduler_step":
            extra.update(sch=type(args[0]).__name__, metric=args[1] is not None if len(args) > 1 else None)
        if hook == "on_before_optimizer_step":
            extra["grad_none"] = [p.grad is None for p in self.module.parameters()]
        if hook == "on_exception":
            extra["exc"] = next(type(x).__name__ for x in args if isinstance(x, BaseException))
        return extra


def random_loader(rows: int, batch_size: int, seed: int = 0) -> DataLoader[Any]:
    """A loader of (rows, 4) inputs and (rows, 1) targets."""
    g = torch.Generator().manual_seed(seed)
    data = TensorDataset(torch.randn(rows, 4, generator=g), torch.randn(rows, 1, generator=g))
    return DataLoader(data, batch_size=batch_size)


@dataclass(frozen=True)
class Case:
    """One run: what the module does, what the trainer gets, which calls are made."""

    calls: tuple[str, ...] = ("fit",)
    trainer: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    datamodule: bool = False
    checkpoint: bool = False
    early_stopping: bool = False
    second_callback: bool = False


DATA_ELSEWHERE = {"own_data": False}
CASES: dict[str, Case] = {
    "fit": Case(),
    "fit_datamodule": Case(build=DATA_ELSEWHERE, datamodule=True),
    "fit_callbacks_order": Case(checkpoint=True, early_stopping=True, second_callback=True),
    "fit_no_model_train_override": Case(build={"hooks_model_train": False}),
    "fit_val_interval": Case(trainer={"val_check_interval": 2}),
    "fit_val_half": Case(trainer={"val_check_interval": 0.4, "accumulate_grad_batches": 1}),
    "fit_every2epochs": Case(trainer={"check_val_every_n_epoch": 2, "max_epochs": 3}),
    "fit_two_val": Case(build={"n_val": 2}, trainer={"max_epochs": 1}),
    "fit_manual": Case(build={"manual": True}, trainer={"accumulate_grad_batches": 1}),
    "fit_step_sched": Case(build={"sched": "step"}),
    "fit_plateau": Case(build={"sched": "plateau"}),
    "fit_none_step": Case(build={"none_on": [1, 2]}, trainer={"max_epochs": 1}),
    "fit_skip_epoch": Case(build={"skip_on": (0, 2)}),
    "fit_should_stop": Case(build={"stop_at": (0, 1)}),
    "fit_exception": Case(build={"raise_at": (0, 2), **DATA_ELSEWHERE}, datamodule=True),
    "fit_max_steps": Case(trainer={"max_epochs": -1, "max_steps": 4}),
    "fit_no_val": Case(trainer={"limit_val_batches": 0}),
    "fit_fast_dev_run": Case(trainer={"fast_dev_run": True}),
    "fit_clip": Case(trainer={"gradient_clip_val": 0.5, "max_epochs": 1}),
    "validate": Case(calls=("validate",)),
    "test": Case(calls=("test",)),
    "predict": Case(calls=("predict",)),
    "validate_datamodule": Case(calls=("validate",), build=DATA_ELSEWHERE, datamodule=True),
    "fit_resume_epoch_end": Case(calls=("fit", "resume"), checkpoint=True),
    "fit_resume_mid_epoch": Case(calls=("fit_mid", "resume_mid"), trainer={"accumulate_grad_batches": 1}),
}


@dataclass
class Built:
    """Classes and objects of one run, all of them recorded."""

    net: Any
    data: Any
    first: Any
    second: Any
    early_stopping: Any
    checkpoint: Any


def build(
    fw: Framework,
    rec: Recorder,
    *,
    own_data: bool = True,
    manual: bool = False,
    n_val: int = 1,
    hooks_model_train: bool = True,
    sched: str | None = "epoch",
    none_on: list[int] | None = None,
    skip_on: tuple[int, int] | None = None,
    stop_at: tuple[int, int] | None = None,
    raise_at: tuple[int, int] | None = None,
) -> Built:
    """Make the module, the datamodule and the callbacks of one run.

    Args:
        fw: the framework to build on.
        rec: where events go.
        own_data: the module brings its loaders.
        manual: manual optimisation with two optimizers.
        n_val: number of validation loaders.
        hooks_model_train: override `on_*_model_train` too.
        sched: "epoch", "step", "plateau" or None.
        none_on: batches at which `training_step` returns None.
        skip_on: (epoch, batch) at which `on_train_batch_start` returns -1.
        stop_at: (epoch, batch) at which the module sets `should_stop`.
        raise_at: (epoch, batch) at which `training_step` raises.
    """
    sgd = _logged_sgd(rec)

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.l1, self.l2 = nn.Linear(4, 4), nn.Linear(4, 1)
            if manual:
                self.automatic_optimization = False

        def forward(self, x: torch.Tensor) -> Any:
            return self.l2(torch.relu(self.l1(x)))

        def loss(self, batch: Any) -> torch.Tensor:
            x, y = batch
            return nn.functional.mse_loss(self(x), y)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            here = (self.current_epoch, batch_idx)
            if here == stop_at:
                self.trainer.should_stop = True
            if here == raise_at:
                raise RuntimeError("boom")
            if none_on is not None and batch_idx in none_on:
                return None
            self.log("train_loss", loss)
            return self.step_by_hand(batch) if manual else loss

        def step_by_hand(self, batch: Any) -> None:
            for opt in self.optimizers():
                self.toggle_optimizer(opt)
                loss = self.loss(batch)
                opt.zero_grad()
                self.manual_backward(loss)
                opt.step()
                self.untoggle_optimizer(opt)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            loss = self.loss(batch)
            self.log("val_loss", loss)
            return loss

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            loss = self.loss(batch)
            self.log("test_loss", loss)
            return loss

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(batch[0])

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if (self.current_epoch, batch_idx) == skip_on else None

        def configure_optimizers(self) -> Any:
            if manual:
                first, second = sgd(self.l1.parameters(), lr=0.1), sgd(self.l2.parameters(), lr=0.1)
                first.tag, second.tag = "opt1", "opt2"
                return [first, second]
            return _with_scheduler(sgd(self.parameters(), lr=0.1), sched)

    if own_data:
        _give_loaders(Net, n_val)
    skip = set() if hooks_model_train else {"on_validation_model_train", "on_test_model_train"}
    rec.wrap(Net, "m", MODULE_HOOKS, skip if own_data else skip | set(LOADERS))
    return _built(fw, rec, Net)


def _built(fw: Framework, rec: Recorder, net_class: type) -> Built:
    class Data(fw.LightningDataModule):  # type: ignore[name-defined, misc]
        def train_dataloader(self) -> Any:
            return random_loader(19, 4)

        def val_dataloader(self) -> Any:
            return random_loader(12, 4, 1)

        def test_dataloader(self) -> Any:
            return random_loader(8, 4, 2)

        def predict_dataloader(self) -> Any:
            return random_loader(8, 4, 3)

    class CB1(fw.Callback):  # type: ignore[name-defined, misc]
        def state_dict(self) -> dict[str, int]:
            return {"x": 1}

    class CB2(fw.Callback):  # type: ignore[name-defined, misc]
        pass

    class ES(fw.callbacks.EarlyStopping):  # type: ignore[name-defined, misc]
        pass

    class CK(fw.callbacks.ModelCheckpoint):  # type: ignore[name-defined, misc]
        pass

    rec.wrap(Data, "dm", DATAMODULE_HOOKS)
    rec.wrap(CB1, "cb1", CALLBACK_HOOKS)
    rec.wrap(CB2, "cb2", CALLBACK_HOOKS)
    rec.wrap(ES, "es", BUILT_IN_HOOKS)
    rec.wrap(CK, "ck", BUILT_IN_HOOKS)
    torch.manual_seed(0)
    return Built(net_class(), Data(), CB1, CB2, ES, CK)


def _give_loaders(net_class: Any, n_val: int) -> None:
    val = [random_loader(12, 4, i + 1) for i in range(n_val)]
    made = (random_loader(19, 4), val[0] if n_val == 1 else val, random_loader(8, 4, 2), random_loader(8, 4, 3))
    for name, loader in zip(LOADERS, made, strict=True):
        setattr(net_class, name, lambda self, loader=loader: loader)


def _logged_sgd(rec: Recorder) -> Any:
    class LoggedSGD(torch.optim.SGD):
        tag = "opt"

        def step(self, closure: Any = None) -> Any:
            rec.add(self.tag, "step_enter")
            result = super().step(closure)
            rec.add(self.tag, "step_exit")
            return result

        def zero_grad(self, set_to_none: bool = True) -> None:
            rec.add(self.tag, "zero_grad")
            super().zero_grad(set_to_none)

    return LoggedSGD


def _with_scheduler(opt: Any, sched: str | None) -> Any:
    if sched is None:
        return opt
    if sched == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
        return {"optimizer": opt, "lr_scheduler": plateau, "monitor": "val_loss"}
    step = torch.optim.lr_scheduler.StepLR(opt, 1)
    return {"optimizer": opt, "lr_scheduler": {"scheduler": step, "interval": sched}}


def record(fw: Framework, name: str) -> dict[str, Any]:
    """Run the case `name` of `CASES` and return its recording: events per call, order of callbacks, final counters."""
    return _Session(fw, name).record()


class _Session:
    """The calls of one case, one after the other in one folder."""

    def __init__(self, fw: Framework, name: str) -> None:
        self.fw, self.case, self.rec, self.folder = fw, CASES[name], Recorder(), tempfile.mkdtemp()
        self.options: dict[str, Any] = dict(
            max_epochs=2,
            accumulate_grad_batches=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
            **({} if self.case.checkpoint else {"enable_checkpointing": False}),
        )
        self.options.update(self.case.trainer)
        self.built = build(fw, self.rec, **self.case.build)
        self.callbacks = self._callbacks()
        self.out: dict[str, Any] = {
            "case": name,
            "framework": fw.name,
            "version": fw.version,
            "trainer_args": self.options,
            "build_args": {k: list(v) if isinstance(v, tuple) else v for k, v in self.case.build.items()},
            "callbacks_passed": [type(c).__name__ for c in self.callbacks],
            "segments": {},
            "final": {},
        }

    def record(self) -> dict[str, Any]:
        for call in self.case.calls:
            self.rec.events, self.rec.trainer = [], None
            special = getattr(self, f"_{call}", None)
            trainer = special() if special else self._call(call)
            self.out["segments"][call] = self.rec.events
            self.out["final"][call] = {"current_epoch": trainer.current_epoch, "global_step": trainer.global_step}
        return self.out

    def _callbacks(self) -> list[Any]:
        callbacks = [self.built.first()]
        if self.case.checkpoint:
            monitor = {"monitor": "val_loss"} if self.case.early_stopping else {}
            callbacks.insert(0, self.built.checkpoint(dirpath=self._path("ck"), save_last=True, **monitor))
        if self.case.early_stopping:
            callbacks.insert(1, self.built.early_stopping("val_loss", patience=10))
        if self.case.second_callback:
            callbacks.append(self.built.second())
        return callbacks

    def _path(self, *names: str) -> str:
        return os.path.join(self.folder, *names)

    def _trainer(self, net: Any, callbacks: list[Any], **over: Any) -> Any:
        self.rec.module = net
        trainer = self.fw.Trainer(callbacks=callbacks, default_root_dir=self.folder, **{**self.options, **over})
        self.rec.trainer = trainer
        return trainer

    def _call(self, call: str) -> Any:
        trainer = self._trainer(self.built.net, self.callbacks)
        self.out["callbacks_order"] = [type(c).__name__ for c in trainer.callbacks]
        arguments: dict[str, Any] = {"datamodule": self.built.data} if self.case.datamodule else {}
        if call in ("validate", "test"):
            arguments["verbose"] = False
        try:
            returned = getattr(trainer, call)(self.built.net, **arguments)
        except RuntimeError as error:
            self.out["raised"] = str(error)
            return trainer
        if call in ("validate", "test"):
            self.out["returned_keys"] = [sorted(d) for d in returned]
        return trainer

    def _resume(self) -> Any:
        again = build(self.fw, self.rec, **self.case.build)
        callbacks = [again.first(), again.checkpoint(dirpath=self._path("ck2"))]
        trainer = self._trainer(again.net, callbacks, max_epochs=3)
        trainer.fit(again.net, ckpt_path=self._path("ck", "last.ckpt"))
        return trainer

    def _fit_mid(self) -> Any:
        path = self._path("mid.ckpt")

        class Saver(self.fw.Callback):  # type: ignore[name-defined, misc]
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                if trainer.current_epoch == 1 and batch_idx == 2:
                    trainer.save_checkpoint(path)

        trainer = self._trainer(self.built.net, [*self.callbacks, Saver()])
        trainer.fit(self.built.net)
        return trainer

    def _resume_mid(self) -> Any:
        again = build(self.fw, self.rec, **self.case.build)
        trainer = self._trainer(again.net, [again.first()])
        trainer.fit(again.net, ckpt_path=self._path("mid.ckpt"))
        return trainer
