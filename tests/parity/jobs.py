"""Small deterministic CPU jobs that record numbers, to be run on any framework of the same surface.

Each job is a function of a Framework that returns nested numbers and words; `JOBS` lists them by name. The recordings
of lightning 2.6.6 lie in `tests/data/traces/jobs`. More jobs, which were added here, are in `more_jobs.py`.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.parity.framework import Framework

Result = dict[str, Any]


def tensors(n: int, d: int = 6, k: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (n, d) and classes (n,) of k kinds that a small network can learn."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    w = torch.randn(d, k, generator=g)
    return x, (x @ w + 0.3 * torch.randn(n, k, generator=g)).argmax(1)


def loader(n: int, batch_size: int, seed: int = 0, shuffle_seed: int | None = None, **kwargs: Any) -> DataLoader[Any]:
    """A loader of `tensors(n, seed=seed)`, shuffled by its own generator when `shuffle_seed` is given."""
    g = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    data = TensorDataset(*tensors(n, seed=seed))
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle_seed is not None, generator=g, **kwargs)


class Counting(Dataset[Any]):
    """Rows of `tensors(n)` that carry their own number."""

    def __init__(self, n: int) -> None:
        self.x, self.y = tensors(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.x[i], self.y[i], i


def train_rows(**kwargs: Any) -> DataLoader[Any]:
    """7 batches, the last of 5 rows."""
    return loader(53, 8, 0, **kwargs)


def val_rows() -> DataLoader[Any]:
    """3 batches, the last of 5 rows."""
    return loader(21, 8, 1)


def test_rows() -> DataLoader[Any]:
    """3 batches, the last of 2 rows."""
    return loader(18, 8, 2)


test_rows.__test__ = False  # type: ignore[attr-defined]


def plain(value: Any) -> Any:
    """Turn tensors, tuples and infinities into what JSON can hold."""
    if isinstance(value, torch.Tensor):
        value = value.detach().double().cpu()
        return value.item() if value.numel() == 1 else [plain(v) for v in value.flatten()]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def weights(module: nn.Module) -> Result:
    """Names and sums of a module's state."""
    state = dict(module.state_dict())
    flat = torch.cat([v.double().flatten() for v in state.values()])
    return {
        "names": list(state),
        "sum": flat.sum().item(),
        "abs_sum": flat.abs().sum().item(),
        "sq_sum": (flat**2).sum().item(),
        "sha256_f32": hashlib.sha256(flat.float().numpy().tobytes()).hexdigest()[:16],
        "first": [plain(v.flatten()[0]) for v in state.values()],
    }


class Rec:
    """What one run leaves behind."""

    def __init__(self) -> None:
        self.steps: list[Result] = []
        self.logged: list[Result] = []
        self.epochs: list[Result] = []

    def out(self, trainer: Any, module: Any, **more: Any) -> Result:
        """The recording of a finished run."""
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "logged": self.logged,
            "weights": weights(module),
            "global_step": trainer.global_step,
            "current_epoch": trainer.current_epoch,
            "callback_metrics": by_name(trainer.callback_metrics),
            "logged_metrics": by_name(trainer.logged_metrics),
            **more,
        }


def by_name(values: Any) -> Result:
    """Metrics as plain numbers, sorted by name."""
    return plain(dict(sorted(values.items())))  # type: ignore[no-any-return]


def make_logger(fw: Framework, rec: Rec) -> Any:
    """A logger that keeps every record in `rec.logged`."""

    class MemoryLogger(fw.loggers.Logger):  # type: ignore[name-defined, misc]
        @property
        def name(self) -> str:
            return "memory"

        @property
        def version(self) -> str:
            return "v"

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            rec.logged.append({"step": step, "metrics": by_name(metrics)})

    return MemoryLogger()


def make_watch(fw: Framework, rec: Rec) -> Any:
    """A callback that keeps loss, learning rates and counters of each batch and the metrics of each epoch."""

    class Watch(fw.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            rec.steps.append(
                {
                    "epoch": trainer.current_epoch,
                    "batch_idx": batch_idx,
                    "global_step": trainer.global_step,
                    "out_loss": plain(outputs["loss"]) if outputs and "loss" in outputs else None,
                    "lr": [g["lr"] for o in trainer.optimizers for g in o.param_groups],
                }
            )

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.keep("train_end", trainer)

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                self.keep("val_end", trainer)

        def keep(self, at: str, trainer: Any) -> None:
            rec.epochs.append({"at": at, "epoch": trainer.current_epoch, "metrics": by_name(trainer.callback_metrics)})

    return Watch()


def trainer(fw: Framework, rec: Rec, callbacks: Sequence[Any] = (), **over: Any) -> Any:
    """A silent CPU Trainer of three epochs that is watched by `rec`."""
    options: Result = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": make_logger(fw, rec),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": tempfile.mkdtemp(),
    }
    return fw.Trainer(callbacks=[make_watch(fw, rec), *callbacks], **{**options, **over})


def classifier(
    fw: Framework,
    *,
    lr: float = 0.1,
    opt: str = "sgd",
    configure: Callable[[Any], Any] | None = None,
    dropout: float = 0.0,
    hidden: int = 8,
    seed: int = 0,
    body: Result | None = None,
) -> Any:
    """A two-layer classifier.

    Args:
        fw: the framework to build on.
        lr: learning rate.
        opt: "sgd" (with momentum) or "adamw".
        configure: replaces `configure_optimizers`; gets the module.
        dropout: probability of dropping a hidden unit.
        hidden: hidden units.
        seed: of the first weights.
        body: methods that replace the class's.
    """

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, 3))
            self.lr = lr

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

        def evaluate(self, batch: Any, name: str) -> None:
            x, y = batch
            out = self(x)
            self.log(f"{name}_loss", F.cross_entropy(out, y))
            self.log(f"{name}_acc", (out.argmax(1) == y).float().mean())

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.evaluate(batch, "val")

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.evaluate(batch, "test")

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).softmax(1)

        def configure_optimizers(self) -> Any:
            if configure:
                return configure(self)
            if opt == "sgd":
                return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    for name, value in (body or {}).items():
        setattr(Net, name, value)
    return Net()


def error_of(call: Callable[[], Any]) -> str | None:
    """The name of the exception class that `call` raises, or None."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


def job_plain(fw: Framework) -> Result:
    """fit, validate, test and predict of an ordinary classifier."""
    rec, net = Rec(), classifier(fw)
    t = trainer(fw, rec)
    t.fit(net, train_rows(shuffle_seed=3), val_rows())
    fit = rec.out(t, net)
    val, test = t.validate(net, val_rows(), verbose=False), t.test(net, test_rows(), verbose=False)
    return {"fit": fit, "validate": plain(val), "test": plain(test), "predict": plain(t.predict(net, test_rows()))}


def job_accumulate_clip(fw: Framework) -> Result:
    """Three batches a step, with both kinds of clipping and none."""
    out = {}
    kinds: dict[str, Result] = {
        "norm": {"gradient_clip_val": 0.25},
        "value": {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
        "none": {},
    }
    for name, options in kinds.items():
        rec, norms = Rec(), []

        def before(self: Any, optimizer: Any, norms: list[Any] = norms) -> None:
            norms.append(plain(torch.stack([p.grad.norm() for p in self.parameters()]).norm()))

        net = classifier(fw, opt="adamw", lr=0.05, body={"on_before_optimizer_step": before})
        t = trainer(fw, rec, accumulate_grad_batches=3, max_epochs=2, **options)
        t.fit(net, train_rows(), val_rows())
        out[name] = rec.out(t, net, grad_norms_before_clip=norms)
    return out


def gan(fw: Framework) -> Any:
    """Generator and discriminator, stepped by hand at different rates, each with a scheduler."""

    class Gan(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.automatic_optimization = False
            self.g, self.d = nn.Linear(2, 6), nn.Linear(6, 1)
            self.z = torch.Generator().manual_seed(5)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, _ = batch
            og, od = self.optimizers()
            z = torch.randn(len(x), 2, generator=self.z)
            one, zero = torch.ones(len(x), 1), torch.zeros(len(x), 1)
            self.toggle_optimizer(og)
            g_loss = F.binary_cross_entropy_with_logits(self.d(self.g(z)), one)
            og.zero_grad()
            self.manual_backward(g_loss)
            self.clip_gradients(og, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            og.step()
            self.untoggle_optimizer(og)
            self.toggle_optimizer(od)
            real = F.binary_cross_entropy_with_logits(self.d(x), one)
            d_loss = real + F.binary_cross_entropy_with_logits(self.d(self.g(z).detach()), zero)
            self.manual_backward(d_loss)
            if (batch_idx + 1) % 2 == 0:  # the discriminator accumulates by hand
                od.step()
                od.zero_grad()
            self.untoggle_optimizer(od)
            if self.trainer.is_last_batch:
                for scheduler in self.lr_schedulers():
                    scheduler.step()
            self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)
            return {"loss": g_loss + d_loss}

        def configure_optimizers(self) -> Any:
            g = torch.optim.Adam(self.g.parameters(), lr=0.02, betas=(0.5, 0.999))
            d = torch.optim.Adam(self.d.parameters(), lr=0.02, betas=(0.5, 0.999))
            return [g, d], [S.ExponentialLR(g, 0.9), S.ExponentialLR(d, 0.8)]

    return Gan()


def job_manual_two_optimizers(fw: Framework) -> Result:
    """A GAN by manual optimisation."""
    rec, net = Rec(), gan(fw)
    t = trainer(fw, rec)
    t.fit(net, train_rows())
    return rec.out(t, net)


def _onecycle(m: Any) -> Any:
    opt = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    m.est = m.trainer.estimated_stepping_batches
    return {
        "optimizer": opt,
        "lr_scheduler": {"scheduler": S.OneCycleLR(opt, max_lr=0.3, total_steps=m.est), "interval": "step"},
    }


def _epoch2(m: Any) -> Any:
    opt = torch.optim.SGD(m.parameters(), lr=0.1)
    return {
        "optimizer": opt,
        "lr_scheduler": {"scheduler": S.StepLR(opt, 1, 0.5), "interval": "epoch", "frequency": 2},
    }


def _plateau(m: Any) -> Any:
    opt = torch.optim.SGD(m.parameters(), lr=0.5)
    scheduler = S.ReduceLROnPlateau(opt, patience=0, factor=0.3, threshold=0.05)
    return {"optimizer": opt, "lr_scheduler": scheduler, "monitor": "val_loss"}


def _plateau_step(m: Any) -> Any:
    opt = torch.optim.SGD(m.parameters(), lr=0.5)
    plateau = S.ReduceLROnPlateau(opt, patience=1, factor=0.5)
    return {
        "optimizer": opt,
        "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss_step", "interval": "step", "frequency": 2},
    }


def _warm(m: Any) -> Any:
    opt = torch.optim.AdamW(m.parameters(), lr=0.05)
    warm = S.LambdaLR(opt, lambda s: min(1.0, (s + 1) / 5))
    return [opt], [{"scheduler": warm, "interval": "step", "frequency": 2, "name": "warm"}]


def _two(m: Any) -> Any:
    opt = torch.optim.SGD(m.parameters(), lr=0.1)
    return [opt], [{"scheduler": S.LinearLR(opt, 0.1, 1.0, 4), "interval": "step"}, S.ExponentialLR(opt, 0.7)]


def _epoch_plain(m: Any) -> Any:
    opt = torch.optim.SGD(m.parameters(), lr=0.1)
    return [opt], [S.CosineAnnealingLR(opt, 4)]


def job_schedulers(fw: Framework) -> Result:
    """Schedulers by step, epoch and plateau, with frequency and accumulation."""
    cases: dict[str, tuple[Callable[[Any], Any], Result]] = {
        "onecycle_acc2": (_onecycle, {"accumulate_grad_batches": 2}),
        "epoch_every2": (_epoch2, {"max_epochs": 5}),
        "plateau_epoch": (_plateau, {"max_epochs": 6}),
        "plateau_step": (_plateau_step, {}),
        "warmup_step_freq2": (_warm, {}),
        "two_schedulers": (_two, {}),
        "epoch_val_interval": (_epoch_plain, {"val_check_interval": 3}),
        "plateau_every2epochs": (_plateau, {"max_epochs": 4, "check_val_every_n_epoch": 2}),
    }
    out = {}
    for name, (configure, options) in cases.items():
        rec, net = Rec(), classifier(fw, configure=configure)
        callbacks = [fw.callbacks.LearningRateMonitor()] if name != "plateau_every2epochs" else []
        t = trainer(fw, rec, callbacks, **options)
        error = error_of(lambda t=t, net=net: t.fit(net, train_rows(), val_rows()))
        out[name] = rec.out(t, net, estimated=getattr(net, "est", None), error=error)
    return out


def job_multi_val(fw: Framework) -> Result:
    """Several validation loaders and every kind of reduction."""

    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y))
        self.log("val_max", out.max(), reduce_fx="max")
        self.log("val_min", out.min(), reduce_fx="min")
        self.log("val_n", float(len(x)), reduce_fx="sum")
        self.log("stepwise", float(batch_idx), on_step=True, on_epoch=True)
        self.log(f"own_name_{dataloader_idx}", F.cross_entropy(out, y), add_dataloader_idx=False)
        self.log("weighted", out.mean(), batch_size=2)

    def on_validation_epoch_end(self: Any) -> None:
        self.log("after_val", 7.0)

    body = {"validation_step": validation_step, "on_validation_epoch_end": on_validation_epoch_end}
    rec, net = Rec(), classifier(fw, body=body)
    t = trainer(fw, rec, max_epochs=2)
    t.fit(net, train_rows(), [val_rows(), test_rows()])
    out = {"fit": rec.out(t, net), "validate": plain(t.validate(net, [val_rows(), test_rows()], verbose=False))}
    rec, net = Rec(), classifier(fw, body={"validation_step": validation_step})
    t = trainer(fw, rec, max_epochs=1, limit_val_batches=1)
    t.fit(net, train_rows(), [val_rows(), test_rows(), val_rows()])
    return {**out, "limited": rec.out(t, net)}


def job_precision(fw: Framework) -> Result:
    """The precisions a CPU has, with the types that a step sees."""
    out = {}
    for precision in ("bf16-mixed", "bf16-true", "64-true", "32-true"):
        rec, seen = Rec(), {}

        def training_step(self: Any, batch: Any, batch_idx: int, seen: dict[str, str] = seen) -> Any:
            x, y = batch
            out = self(x)
            loss = F.cross_entropy(out, y)
            seen.update(
                out=str(out.dtype),
                x=str(x.dtype),
                w=str(next(self.parameters()).dtype),
                default=str(torch.get_default_dtype()),
                loss=str(loss.dtype),
            )
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

        net = classifier(fw, opt="adamw", lr=0.02, body={"training_step": training_step})
        t = trainer(fw, rec, precision=precision, max_epochs=2, gradient_clip_val=1.0)
        t.fit(net, train_rows(), val_rows())
        out[precision] = rec.out(t, net, dtypes=dict(seen), after_dtype=str(next(net.parameters()).dtype))
    return out


def scripted(fw: Framework, values: Sequence[float], key: str = "val_loss") -> Any:
    """A classifier whose validation metric follows a script, one value per validation run."""
    state = {"i": -1}

    def on_validation_epoch_end(self: Any) -> None:
        if not self.trainer.sanity_checking:
            state["i"] += 1
            self.log(key, values[min(state["i"], len(values) - 1)])

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        pass

    body = {"on_validation_epoch_end": on_validation_epoch_end, "validation_step": validation_step}
    return classifier(fw, body=body)


CHECKPOINT_CASES: dict[str, tuple[Result, Result]] = {
    "default": ({}, {}),
    "monitor": ({"monitor": "val_loss"}, {}),
    "top2_last": ({"monitor": "val_loss", "save_top_k": 2, "save_last": True}, {}),
    "top3_max": ({"monitor": "val_loss", "mode": "max", "save_top_k": 3}, {}),
    "all": ({"save_top_k": -1}, {}),
    "none_last": ({"save_top_k": 0, "save_last": True}, {}),
    "name": ({"monitor": "val_loss", "save_top_k": 2, "filename": "m-{epoch:02d}-{val_loss:.2f}-{nope}"}, {}),
    "name_slash": (
        {"monitor": "val_loss", "filename": "e{epoch}-v{val_loss:.3f}", "auto_insert_metric_name": False},
        {},
    ),
    "fixed_name": ({"monitor": "val_loss", "save_top_k": 2, "filename": "best"}, {}),
    "fixed_name_nover": (
        {"monitor": "val_loss", "save_top_k": 2, "filename": "best", "enable_version_counter": False},
        {},
    ),
    "steps": ({"every_n_train_steps": 5, "save_top_k": -1}, {}),
    "steps_top1": ({"every_n_train_steps": 5}, {}),
    "steps_monitor": ({"every_n_train_steps": 5, "monitor": "val_loss", "save_top_k": -1}, {}),
    "epochs2": ({"every_n_epochs": 2, "save_top_k": -1}, {}),
    "epochs2_last": ({"every_n_epochs": 2, "save_top_k": -1, "save_last": True}, {}),
    "weights": ({"monitor": "val_loss", "save_weights_only": True}, {}),
    "val_interval": ({"monitor": "val_loss", "save_top_k": -1}, {"val_check_interval": 3}),
    "on_train_epoch_end_false": ({"monitor": "val_loss", "save_top_k": -1, "save_on_train_epoch_end": False}, {}),
    "every2val": ({"monitor": "val_loss", "save_top_k": -1}, {"check_val_every_n_epoch": 2}),
    "link": ({"monitor": "val_loss", "save_last": "link"}, {}),
}


def job_checkpoint(fw: Framework) -> Result:
    """Which files ModelCheckpoint leaves after every epoch, and what is in one."""
    out = {name: _checkpoint_case(fw, *case) for name, case in CHECKPOINT_CASES.items()}
    root = tempfile.mkdtemp()
    csv = fw.loggers.CSVLogger(root)
    t = trainer(fw, Rec(), max_epochs=1, enable_checkpointing=True, logger=csv, default_root_dir=root)
    t.fit(classifier(fw), train_rows(), val_rows())
    walked = [os.path.relpath(os.path.join(folder, x), root) for folder, _, files in os.walk(root) for x in files]
    content = torch.load(t.checkpoint_callback.best_model_path, weights_only=False)
    folder = tempfile.mkdtemp()
    for _ in range(2):
        save = fw.callbacks.ModelCheckpoint(dirpath=folder)
        t = trainer(fw, Rec(), [save], max_epochs=1, enable_checkpointing=True)
        t.fit(classifier(fw), train_rows(), val_rows())
    return {
        **out,
        "default_location": sorted(walked),
        "content_keys": sorted(content),
        "content_epoch_step": [content["epoch"], content["global_step"]],
        "content_callbacks": sorted(content["callbacks"]),
        "same_dir_twice": sorted(os.listdir(folder)),
    }


def _checkpoint_case(fw: Framework, options: Result, more: Result) -> Result:
    folder, seen = tempfile.mkdtemp(), []

    class Look(fw.Callback):  # type: ignore[name-defined, misc]
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            seen.append(sorted(os.listdir(folder)))

    save = fw.callbacks.ModelCheckpoint(dirpath=folder, **options)
    net = scripted(fw, [0.9, 0.7, 0.8, float("nan"), 0.7, 0.6, 0.65])
    t = trainer(fw, Rec(), [Look(), save], max_epochs=7, enable_checkpointing=True, **more)
    error = error_of(lambda: t.fit(net, train_rows(), val_rows()))
    seen.append(sorted(os.listdir(folder)))
    return {
        "files_after_epoch": seen,
        "best_model_path": os.path.basename(save.best_model_path),
        "best_model_score": plain(save.best_model_score),
        "last_model_path": os.path.basename(save.last_model_path),
        "best_k_models": {os.path.basename(k): plain(v) for k, v in sorted(save.best_k_models.items())},
        "error": error,
    }


def job_early_stopping(fw: Framework) -> Result:
    """When EarlyStopping stops, for scripted values."""
    nan = float("nan")
    cases: dict[str, tuple[Result, list[float]]] = {
        "patience2": ({"patience": 2}, [1, 0.9, 0.95, 0.91, 0.8, 0.7]),
        "min_delta": ({"patience": 2, "min_delta": 0.1}, [1, 0.95, 0.86, 0.85, 0.7]),
        "max": ({"patience": 1, "mode": "max"}, [0.1, 0.2, 0.3, 0.25, 0.4]),
        "nan": ({"patience": 5}, [1, nan, 0.5]),
        "nan_ok": ({"patience": 2, "check_finite": False}, [1, nan, nan, 0.5, 0.4]),
        "threshold": ({"stopping_threshold": 0.5}, [1, 0.8, 0.49, 0.3]),
        "diverge": ({"divergence_threshold": 1.5, "patience": 9}, [1, 1.2, 1.6, 0.3]),
        "equal": ({"patience": 2}, [1, 1, 1, 1, 1]),
        "missing": ({"monitor": "nope"}, [1]),
        "missing_ok": ({"monitor": "nope", "strict": False}, [1]),
        "min_epochs": ({"patience": 1}, [1, 2, 3, 4, 5, 6]),
    }
    out = {}
    for name, (options, values) in cases.items():
        stop = fw.callbacks.EarlyStopping(**{"monitor": "val_loss", **options})
        t = trainer(fw, Rec(), [stop], max_epochs=6, **({"min_epochs": 4} if name == "min_epochs" else {}))
        net = scripted(fw, [float(v) for v in values])
        error = error_of(lambda t=t, net=net: t.fit(net, train_rows(), val_rows()))
        out[name] = {**_stopped(t, stop), "best": plain(stop.best_score), "error": error}
    stop = fw.callbacks.EarlyStopping("val_loss", patience=2)
    t = trainer(fw, Rec(), [stop], max_epochs=6, val_check_interval=2)
    t.fit(scripted(fw, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), train_rows(), val_rows())
    return {**out, "val_interval2": _stopped(t, stop)}


def _stopped(t: Any, stop: Any) -> Result:
    return {
        "current_epoch": t.current_epoch,
        "global_step": t.global_step,
        "stopped_epoch": stop.stopped_epoch,
        "wait_count": stop.wait_count,
    }


def job_tuner(fw: Framework) -> Result:
    """Curves of the learning-rate finder and results of the batch-size scaler."""
    out = {}
    for mode in ("exponential", "linear"):
        net = classifier(fw, lr=0.1)
        before, t = weights(net), trainer(fw, Rec(), max_epochs=30)
        found = fw.tuner.Tuner(t).lr_find(net, train_rows(), num_training=60, min_lr=1e-4, max_lr=5.0, mode=mode)
        out[f"lr_{mode}"] = {
            "lr": plain(found.results["lr"]),
            "loss": plain(found.results["loss"]),
            "suggestion": plain(found.suggestion()),
            "model_lr": net.lr,
            "weights_restored": weights(net) == before,
        }
    return {**out, **{f"bs_{mode}": _batch_size(fw, mode) for mode in ("power", "binsearch")}}


def _batch_size(fw: Framework, mode: str) -> Result:
    sizes: list[int] = []

    def train_dataloader(self: Any) -> Any:
        sizes.append(self.batch_size)
        return loader(200, self.batch_size)

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) > 48:
            raise RuntimeError("CUDA out of memory.")
        return F.cross_entropy(self(batch[0]), batch[1])

    body = {
        "train_dataloader": train_dataloader,
        "training_step": training_step,
        "val_dataloader": lambda self: val_rows(),
    }
    net = classifier(fw, body=body)
    net.batch_size = 2
    before, t = weights(net), trainer(fw, Rec(), max_epochs=2)
    result = fw.tuner.Tuner(t).scale_batch_size(net, mode=mode)
    return {
        "result": result,
        "model_batch_size": net.batch_size,
        "tried": list(dict.fromkeys(sizes)),
        "weights_restored": weights(net) == before,
    }


def record(fw: Framework, name: str, job: Callable[[Framework], Result]) -> Result:
    """Run one job on one thread (its sums must not depend on the machine) and return its recording."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = plain(job(fw))
    finally:
        torch.set_num_threads(threads)
    return {"job": name, "framework": fw.name, "version": fw.version, "torch": torch.__version__, "result": result}


JOBS: dict[str, Callable[[Framework], Result]] = {
    "plain": job_plain,
    "accumulate_clip": job_accumulate_clip,
    "manual_two_optimizers": job_manual_two_optimizers,
    "schedulers": job_schedulers,
    "multi_val": job_multi_val,
    "precision": job_precision,
    "checkpoint": job_checkpoint,
    "early_stopping": job_early_stopping,
    "tuner": job_tuner,
}
