"""Run a random job on a framework and record what it leaves behind.

Owns the translation of a Job into a module, loaders, callbacks and a Trainer. The recording is plain data:
order of hooks, numbers of every step, what the logger got, metrics, learning rates, weights, or the error.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchmetrics
from torch import nn
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.parity import odd
from tests.parity.framework import Framework
from tests.parity.hook_recorder import CALLBACK_HOOKS, DATAMODULE_HOOKS, MODULE_HOOKS, Recorder
from tests.parity.jobs import by_name, make_logger, plain, tensors, weights
from tests.parity.random_job import BATCH, Job, Log, Sched

CALLBACKS: dict[str, Callable[[Any, str], Any]] = {
    "lr_monitor": lambda known, folder: known.LearningRateMonitor(),
    "early_stopping": lambda known, folder: known.EarlyStopping("train_loss", patience=2, min_delta=0.05),
    "early_stopping_val": lambda known, folder: known.EarlyStopping("val_loss", patience=1, strict=False),
    "accumulate": lambda known, folder: known.GradientAccumulationScheduler({0: 1, 1: 3, 2: 2}),
    "ema": lambda known, folder: known.EMAWeightAveraging(decay=0.8),
    "swa": lambda known, folder: known.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
    "checkpoint": lambda known, folder: known.ModelCheckpoint(
        folder, save_top_k=2, monitor="train_loss", save_last=True
    ),
    "checkpoint_plain": lambda known, folder: known.ModelCheckpoint(folder),
    "checkpoint_steps": lambda known, folder: known.ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1),
    "checkpoint_every_2": lambda known, folder: known.ModelCheckpoint(folder, every_n_epochs=2, save_top_k=-1),
    "checkpoint_val": lambda known, folder: known.ModelCheckpoint(folder, "{epoch}-{val_loss:.3f}", "val_loss"),
    "checkpoint_at_val": lambda known, folder: known.ModelCheckpoint(
        folder, monitor="val_loss", save_top_k=2, save_on_train_epoch_end=False
    ),
}
LOADER_HOOKS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


def play(fw: Framework, job: Job) -> dict[str, Any]:
    """Run `job`; an exception of the framework becomes the entry "error" (the name of its class)."""
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    player = Player(fw, job)
    try:
        player.run()
    except Exception as error:
        player.out["error"] = type(error).__name__
        player.out["message"] = str(error)[:300]
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(default)
    return player.out


class Player:
    """One job on one framework.

    Args:
        fw: the framework.
        job: what to do.
        extra: more callbacks for the trainer.
    """

    def __init__(self, fw: Framework, job: Job, extra: Sequence[Any] = ()) -> None:
        self.fw, self.job, self.folder, self.extra = fw, job, tempfile.mkdtemp(), extra
        self.rec = Recorder()
        self.logged: list[Any] = []
        self.steps: list[Any] = []
        self.epochs: list[Any] = []
        self.calls: dict[str, int] = {}
        self.out: dict[str, Any] = {
            "events": self.rec.events,
            "steps": self.steps,
            "logged": self.logged,
            "epochs": self.epochs,
        }

    def run(self) -> None:
        job, path = self.job, os.path.join(self.folder, "first.ckpt")
        if job.resume_after is not None:
            trainer, net = self.fit(max_epochs=job.resume_after)
            trainer.save_checkpoint(path)
            self._keep("first", trainer, net)
            trainer, net = self.fit(ckpt_path=path, seed=7)
        else:
            trainer, net = self.fit()
        self._keep("fit", trainer, net)
        for call in job.then:
            self.out[call] = plain(self._call(trainer, net, call))
        self._keep("end", trainer, net)

    def _call(self, trainer: Any, net: Any, call: str) -> Any:
        own = self.data is not None and not call.endswith("_loaders")
        call = call.removesuffix("_loaders")
        if call == "fit":
            trainer.fit(net, **({"datamodule": self.data} if own else self._data()))
            return None
        data = {"datamodule": self.data} if own else self._data(val=True)
        if call == "predict":
            return trainer.predict(net, **data)
        if call == "test_best":
            return trainer.test(net, **data, verbose=False, ckpt_path="best")
        if call == "test_again":  # without a model: the best checkpoint of the one before
            return trainer.test(**data, verbose=False)
        return getattr(trainer, call)(net, **data, verbose=False)

    def fit(self, ckpt_path: str | None = None, seed: int = 3, **over: Any) -> tuple[Any, Any]:
        """Make the module and the trainer from `seed`, train, and return both."""
        torch.manual_seed(seed)
        net = self._module()
        self.data = data = self._datamodule()
        trainer = self._trainer(**over)
        self.rec.trainer, self.rec.module, self.net = trainer, net, net
        torch.manual_seed(seed + 1)
        arguments = {"datamodule": data} if data is not None else self._data()
        try:
            trainer.fit(net, **arguments, ckpt_path=ckpt_path)
        except odd.Boom as error:
            self.out["raised"] = [str(error), trainer.interrupted, trainer.state.status.value]
        return trainer, net

    def _keep(self, name: str, trainer: Any, net: Any) -> None:
        self.out[name + "_state"] = {
            "current_epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "callback_metrics": by_name(trainer.callback_metrics),
            "logged_metrics": None if "raised" in self.out else by_name(trainer.logged_metrics),
            "progress_bar_metrics": by_name(trainer.progress_bar_metrics),
            "num_training_batches": str(trainer.num_training_batches),
            "num_val_batches": [str(n) for n in trainer.num_val_batches] if name != "end" else None,
            "should_stop": trainer.should_stop,
            "weights": weights(net),
            "training": [m.training for m in net.modules()],
            "files": {name: self._file(name) for name in sorted(os.listdir(self.folder)) if name.endswith(".ckpt")},
            "random": None if self.job.resume_after or "fit" in self.job.then else torch.rand(1).item(),
        }

    def _file(self, name: str) -> list[Any]:
        content = torch.load(os.path.join(self.folder, name), weights_only=False)
        return [content["epoch"], content["global_step"], plain(sum(v.sum() for v in content["state_dict"].values()))]

    # ------------------------------------------------------------------ data

    def _loader(self, rows: int, seed: int, shuffle: bool = False) -> Any:
        data = TensorDataset(*tensors(rows, seed=seed))
        if self.job.unsized:
            return DataLoader(_Stream(data), batch_size=BATCH)
        return DataLoader(data, batch_size=BATCH, shuffle=shuffle)

    def _train(self) -> Any:
        nest = self._train_nest()
        for name in self.job.odd:
            nest = odd.TRAIN[name](self, nest) if name in odd.TRAIN else nest
        return nest

    def again(self) -> Any:
        """One more training loader."""
        return self._loader(10, 19)

    def _train_nest(self) -> Any:
        made = [self._loader(rows, 10 + i, self.job.shuffle) for i, rows in enumerate(self.job.train)]
        if len(made) == 1:
            return made[0]
        if self.job.nest == "list":
            return made
        if self.job.nest == "dict":
            return dict(zip("xyz", made, strict=False))
        return self.fw.utilities.CombinedLoader(made, self.job.nest)

    def _val(self) -> Any:
        made = [self._loader(rows, 20 + i) for i, rows in enumerate(self.job.val)]
        nest = made[0] if len(made) == 1 else made
        for name in self.job.odd:
            nest = odd.VAL[name](self, nest) if name in odd.VAL else nest
        return nest

    def _data(self, val: bool = False) -> dict[str, Any]:
        if val:
            return {"dataloaders": self._val() if self.job.val else self._loader(5, 30)}
        if self.job.source != "arguments":
            return {}
        out = {"train_dataloaders": self._train()}
        return {**out, "val_dataloaders": self._val()} if self.job.val else out

    def _datamodule(self) -> Any:
        if self.job.source != "datamodule":
            return None
        body = {"train_dataloader": lambda this: self._train(), "val_dataloader": lambda this: self._val()}
        body.update({f"{name}_dataloader": lambda this: self._loader(5, 30) for name in ("test", "predict")})
        data = type("Data", (self.fw.LightningDataModule,), body)
        if self.job.watch_hooks:
            self.rec.wrap(data, "dm", DATAMODULE_HOOKS)
        return data()

    # ------------------------------------------------------------------ trainer and callbacks

    def _trainer(self, **over: Any) -> Any:
        options: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": make_logger(self.fw, self),  # type: ignore[arg-type]
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "default_root_dir": self.folder,
            **self.job.trainer,
            **over,
        }
        if not any(name.startswith("checkpoint") for name in self.job.callbacks):
            options["enable_checkpointing"] = False
        made = [CALLBACKS[name](self.fw.callbacks, self.folder) for name in self.job.callbacks]
        if self.job.checkpoint is not None:
            options["enable_checkpointing"] = None
            made.append(self.fw.callbacks.ModelCheckpoint(self.folder, **self.job.checkpoint))
        if self.job.early is not None:
            made.append(self.fw.callbacks.EarlyStopping(**self.job.early))
        made += [odd.CALLBACKS[name](self.fw.callbacks) for name in self.job.odd if name in odd.CALLBACKS]
        for name in self.job.odd:
            options.update(odd.OPTIONS.get(name, {}))
        options.update(over if "max_epochs" in over else {})
        return self.fw.Trainer(callbacks=[self._watch(), *made, *self.extra], **options)

    def _watch(self) -> Any:
        player = self

        class Watch(self.fw.Callback):  # type: ignore[name-defined, misc]
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                player.log(self, "callback", "on_train_batch_end")
                player.steps.append(
                    {
                        "epoch": trainer.current_epoch,
                        "batch_idx": batch_idx,
                        "global_step": trainer.global_step,
                        "outputs": by_name(outputs) if isinstance(outputs, dict) else str(outputs),
                        "is_last_batch": trainer.is_last_batch,
                        "lr": [g["lr"] for o in trainer.optimizers for g in o.param_groups],
                        "metrics": by_name(trainer.callback_metrics),
                    }
                )

            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                player.log(self, "callback", "on_train_epoch_end")
                self.keep("train_end", trainer)

            def on_validation_end(self, trainer: Any, module: Any) -> None:
                self.keep("val_end", trainer)

            def keep(self, at: str, trainer: Any) -> None:
                now = {"callback": trainer.callback_metrics, "bar": trainer.progress_bar_metrics}
                player.epochs.append([at, trainer.current_epoch, {k: by_name(v) for k, v in now.items()}])

        own = ("on_train_batch_end", "on_train_epoch_end", "on_validation_end")
        self._logging_hooks(Watch, "callback", own)
        if self.job.watch_hooks:
            self.rec.wrap(Watch, "cb", CALLBACK_HOOKS)
        return Watch()

    # ------------------------------------------------------------------ module

    def _module(self) -> Any:
        job, player = self.job, self

        class Net(self.fw.LightningModule):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(job.dropout), nn.Linear(8, 3))
                self.automatic_optimization = not job.manual
                for i, call in enumerate(job.logs):
                    if _is_metric(call):
                        setattr(self, f"metric_{i}", getattr(torchmetrics, call.value)())

            def loss(self, batch: Any) -> Any:
                return odd.cross_entropy(self.net, batch)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.loss(batch)
                if job.stop_at == (self.current_epoch, batch_idx):
                    self.trainer.should_stop = True
                player.log(self, "module", "training_step", loss)
                if job.manual:
                    return self.step_by_hand(batch, batch_idx)
                self.log("train_loss", loss, on_step=True, on_epoch=True)
                if batch_idx in job.none_on:
                    return None
                return loss if job.returns == "tensor" else {"loss": loss, "n": torch.tensor(float(batch_idx))}

            def step_by_hand(self, batch: Any, batch_idx: int) -> Any:
                found = self.optimizers()
                for opt in found if isinstance(found, list) else [found]:
                    with opt.toggle_model(sync_grad=True):
                        opt.zero_grad()
                        loss = self.loss(batch)
                        self.manual_backward(loss)
                        self.clip_gradients(opt, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
                        if batch_idx not in job.none_on:
                            opt.step()
                self.log("train_loss", loss, on_step=True, on_epoch=True)
                scheds = self.lr_schedulers()
                if self.trainer.is_last_batch and scheds is not None:
                    for sched in scheds if isinstance(scheds, list) else [scheds]:
                        sched.step(*([loss.detach()] if isinstance(sched, S.ReduceLROnPlateau) else []))
                return None if batch_idx in job.none_on else {"loss": loss.detach()}

            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                loss = self.loss(batch)
                self.log("val_loss", loss)
                player.log(self, "module", "validation_step", loss)
                return loss

            def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                loss = self.loss(batch)
                self.log("test_loss", loss, on_step=True, on_epoch=True)
                player.log(self, "module", "test_step", loss)

            def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                return self.net(odd.pairs(batch)[0][0])

            def configure_optimizers(self) -> Any:
                return player.optimizers(self)

        if job.skip_at is not None:
            Net.on_train_batch_start = lambda this, batch, batch_idx: (
                -1 if job.skip_at == (this.current_epoch, batch_idx) else None
            )
        if job.source == "module":
            Net.train_dataloader = lambda this: self._train()
            Net.val_dataloader = lambda this: self._val()
        for name in job.overrides:
            setattr(Net, name, _OVERRIDES[name])
        for name in job.odd:
            if name in odd.NET:
                odd.NET[name](self, Net)
            if name in odd.CONFIGURE:
                Net.configure_optimizers = odd.CONFIGURE[name]
        self._logging_hooks(Net, "module", ("training_step", "validation_step", "test_step"))
        if job.watch_hooks:
            skip = set() if job.source == "module" else set(LOADER_HOOKS)
            self.rec.wrap(Net, "m", MODULE_HOOKS, skip=skip)
        return Net()

    def optimizers(self, net: Any) -> Any:
        """What configure_optimizers returns."""
        made = [_optimizer(name, net) for name in self.job.optimizers]
        scheds = [_scheduler(made[0], s) for s in self.job.schedulers]
        if not scheds:
            return made if len(made) > 1 else made[0]
        return made, scheds

    # ------------------------------------------------------------------ logging

    def _logging_hooks(self, cls: Any, by: str, own: tuple[str, ...]) -> None:
        for hook in {call.hook for call in self.job.logs if call.by == by} - set(own):
            inherited = getattr(cls, hook)

            def method(
                this: Any, *args: Any, hook: str = hook, inherited: Callable[..., Any] = inherited, **kwargs: Any
            ) -> Any:
                self.log(this, by, hook)
                return inherited(this, *args, **kwargs)

            setattr(cls, hook, functools.wraps(inherited)(method))

    def log(self, this: Any, by: str, hook: str, loss: Any = None) -> None:
        """Make the calls of `self.log` that the job has for this hook."""
        for i, call in enumerate(self.job.logs):
            if call.hook != hook or call.by != by:
                continue
            self.calls[str(i)] = n = self.calls.get(str(i), 0) + 1
            value: Any = float(n * 7 % 11) / 3
            if call.value == "loss":
                value = loss
            elif call.value == "tensor":
                value = torch.tensor(value)
            elif _is_metric(call):
                getattr(this, f"metric_{i}")(value)
                value = getattr(this, f"metric_{i}")
            this.log(call.name, value, **call.flags)


class _Stream(IterableDataset[Any]):
    """The rows of a dataset without its length."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return (self.data[i] for i in range(len(self.data)))


def _is_metric(call: Log) -> bool:
    return call.value[0].isupper()


def _optimizer(name: str, net: Any) -> Any:
    if name == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=0.05)
    if name == "lbfgs":
        return torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=2)
    return torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.5)


def _scheduler(opt: Any, sched: Sched) -> Any:
    made: dict[str, Callable[[], Any]] = {
        "exponential": lambda: S.ExponentialLR(opt, 0.8),
        "step": lambda: S.StepLR(opt, 2, 0.5),
        "cosine": lambda: S.CosineAnnealingLR(opt, 5),
        "plateau": lambda: S.ReduceLROnPlateau(opt, patience=0, factor=0.5, threshold=0.05),
    }
    out = {"scheduler": made[sched.kind](), "interval": sched.interval, "frequency": sched.frequency}
    return {**out, "monitor": sched.monitor, "strict": sched.strict} if sched.monitor else out


def _optimizer_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
    optimizer.step(closure=optimizer_closure)
    for p in self.parameters():
        p.data.mul_(0.999)


def _backward(self: Any, loss: Any) -> None:
    (1.5 * loss).backward()


def _lr_scheduler_step(self: Any, scheduler: Any, metric: Any) -> None:
    scheduler.step() if metric is None else scheduler.step(metric)


def _configure_gradient_clipping(
    self: Any, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
) -> None:
    if self.trainer.global_step % 2 == 0:
        self.clip_gradients(
            optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
        )


def _optimizer_zero_grad(self: Any, epoch: int, batch_idx: int, optimizer: Any) -> None:
    if batch_idx % 3 != 1:
        optimizer.zero_grad(set_to_none=False)


_OVERRIDES: dict[str, Callable[..., Any]] = {
    "optimizer_step": _optimizer_step,
    "backward": _backward,
    "lr_scheduler_step": _lr_scheduler_step,
    "configure_gradient_clipping": _configure_gradient_clipping,
    "optimizer_zero_grad": _optimizer_zero_grad,
}
