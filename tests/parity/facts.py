"""Small yes/no facts: what a framework answers to odd arguments and misuse.

`FACTS` maps a name to a function of a Framework. The answers of lightning 2.6.6 lie in
`tests/data/traces/facts.json`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.parity.framework import Framework
from tests.parity.jobs import classifier, loader, plain, test_rows, train_rows, val_rows

FACTS: dict[str, Callable[[Framework], Any]] = {}


def fact(function: Callable[[Framework], Any]) -> Callable[[Framework], Any]:
    """Register `function` under its own name."""
    FACTS[function.__name__] = function
    return function


def record(fw: Framework, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Answer every fact (or those in `only`)."""
    out: dict[str, Any] = {}
    for name in only or FACTS:
        answer = FACTS[name](fw)
        out.update(answer if name.startswith("group_") else {name: answer})
    return out


def quiet_trainer(fw: Framework, callbacks: Sequence[Any] = (), **over: Any) -> Any:
    """A Trainer of one epoch without logger, files or display."""
    options: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tempfile.mkdtemp(),
    }
    return fw.Trainer(callbacks=list(callbacks), **{**options, **over})


class Answer(str):
    """ "ok", or an exception as "Class: the first 160 letters"; `classes` are the names of all its classes."""

    classes: tuple[str, ...] = ()


def answer_of(call: Callable[[], Any]) -> Answer:
    """Call, and say how it went."""
    try:
        call()
    except BaseException as error:
        answer = Answer(f"{type(error).__name__}: {str(error)[:160]}")
        answer.classes = tuple(cls.__name__ for cls in type(error).__mro__)
        return answer
    return Answer("ok")


def _fit(fw: Framework, body: dict[str, Any] | None = None, configure: Any = None, **options: Any) -> str:
    net = classifier(fw, body=body, configure=configure)
    return answer_of(lambda: quiet_trainer(fw, **options).fit(net, train_rows()))


def _logging(fw: Framework, log: Callable[[Any], None]) -> str:
    return _fit(fw, body={"training_step": _step_that(log)})


def _step_that(log: Callable[[Any], None]) -> Callable[..., Any]:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        log(self)
        return F.cross_entropy(self(batch[0]), batch[1])

    return training_step


def _with_hparams(fw: Framework) -> Any:
    class H(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, width: int = 4, lr: float = 0.1, act: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["act"])
            self.l = nn.Linear(6, width)
            self.o = nn.Linear(width, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self.o(self.l(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    return H


def _counting_weight(fw: Framework) -> Any:
    class W(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.w.sum()

        def on_train_epoch_end(self) -> None:
            with torch.no_grad():
                self.w.fill_(float(self.current_epoch + 1))
            self.log("m", float(self.current_epoch))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("w", self.w.item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    return W()


@fact
def fit_twice_same_trainer_steps(fw: Framework) -> Any:
    net, t = classifier(fw), quiet_trainer(fw, max_epochs=2)
    t.fit(net, train_rows())
    first = t.global_step
    t.fit(net, train_rows())
    return [first, t.global_step]


@fact
def group_old_arguments(fw: Framework) -> Any:
    names = ("gpus", "tpu_cores", "ipus", "auto_lr_find", "resume_from_checkpoint", "progress_bar_refresh_rate")
    return {f"arg_{name}": answer_of(lambda name=name: quiet_trainer(fw, **{name: 1})) for name in names}


@fact
def precision_16_cpu(fw: Framework) -> Any:
    return str(quiet_trainer(fw, precision=16).precision)


@fact
def precision_bf16_cpu(fw: Framework) -> Any:
    return str(quiet_trainer(fw, precision="bf16").precision)


@fact
def group_old_hooks(fw: Framework) -> Any:
    def answer(hook: str) -> str:
        net = classifier(fw, body={hook: lambda self, outputs: None})
        return answer_of(lambda: quiet_trainer(fw).fit(net, train_rows(), val_rows()))

    return {f"defines_{hook}": answer(hook) for hook in ("training_epoch_end", "validation_epoch_end")}


@fact
def no_configure_optimizers(fw: Framework) -> Any:
    bare = type("M", (fw.LightningModule,), {"training_step": lambda self, batch, batch_idx: None})
    return answer_of(lambda: quiet_trainer(fw).fit(bare(), train_rows()))


@fact
def val_step_no_loader(fw: Framework) -> Any:
    return _fit(fw)


@fact
def module_in_eval_before_fit_is_training_in_step(fw: Framework) -> Any:
    seen: dict[str, bool] = {}

    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> None:
        seen["training"] = self.training

    net = classifier(fw, body={"on_train_batch_start": on_train_batch_start})
    net.eval()
    quiet_trainer(fw).fit(net, train_rows())
    return seen["training"]


@fact
def partial_window_grad_over_true_mean_grad(fw: Framework) -> Any:
    grads: list[torch.Tensor] = []

    def on_before_optimizer_step(self: Any, optimizer: Any) -> None:
        grads.append(torch.cat([p.grad.flatten() for p in self.parameters()]).clone())

    net = classifier(
        fw,
        body={"on_before_optimizer_step": on_before_optimizer_step},
        configure=lambda m: torch.optim.SGD(m.parameters(), lr=0.0),
    )
    quiet_trainer(fw, accumulate_grad_batches=4).fit(net, loader(24, 4))
    rest, same = list(loader(24, 4))[4:], classifier(fw)
    (sum(F.cross_entropy(same(x), y) for x, y in rest) / len(rest)).backward()  # type: ignore[union-attr]
    right = torch.cat([p.grad.flatten() for p in same.parameters()])
    return round((grads[1].norm() / right.norm()).item(), 4)


@fact
def log_vector(fw: Framework) -> Any:
    return _logging(fw, lambda m: m.log("x", torch.ones(2)))


@fact
def log_nested_dict(fw: Framework) -> Any:
    return _logging(fw, lambda m: m.log("x", {"a": {"b": 1.0}}))


@fact
def log_string(fw: Framework) -> Any:
    return _logging(fw, lambda m: m.log("x", "a"))


@fact
def log_same_key_twice_same_args(fw: Framework) -> Any:
    def twice(m: Any) -> None:
        m.log("x", 1.0, on_step=True, on_epoch=True)
        m.log("x", 3.0, on_step=True, on_epoch=True)

    t = quiet_trainer(fw)
    t.fit(classifier(fw, body={"training_step": _step_that(twice)}), train_rows())
    return plain({k: v for k, v in t.callback_metrics.items() if k.startswith("x")})


@fact
def log_same_key_twice_other_args(fw: Framework) -> Any:
    def twice(m: Any) -> None:
        m.log("x", 1.0)
        m.log("x", 3.0, prog_bar=True)

    return _logging(fw, twice)


@fact
def log_both_false(fw: Framework) -> Any:
    return _logging(fw, lambda m: m.log("x", 1.0, on_step=False, on_epoch=False))


@fact
def log_reduce_callable(fw: Framework) -> Any:
    return _logging(fw, lambda m: m.log("x", 1.0, on_epoch=True, reduce_fx=lambda x: x[-1]))


@fact
def log_name_with_dataloader_idx(fw: Framework) -> Any:
    return _logging(fw, lambda m: m.log("x/dataloader_idx_0", 1.0))


@fact
def log_outside(fw: Framework) -> Any:
    return answer_of(lambda: classifier(fw).log("x", 1.0))


@fact
def log_after_fit(fw: Framework) -> Any:
    net = classifier(fw)
    quiet_trainer(fw).fit(net, train_rows())
    return answer_of(lambda: net.log("x", 1.0))


@fact
def predict_two_loaders_without_dataloader_idx(fw: Framework) -> Any:
    return answer_of(lambda: quiet_trainer(fw).predict(classifier(fw), [val_rows(), test_rows()]))


@fact
def predict_two_loaders_shape(fw: Framework) -> Any:
    body = {"predict_step": lambda self, batch, batch_idx, dataloader_idx=0: self(batch[0])}
    out = quiet_trainer(fw).predict(classifier(fw, body=body), [val_rows(), test_rows()])
    return [[len(x) for x in out], list(out[0][0].shape)]


@fact
def predict_step_default_is_forward(fw: Framework) -> Any:
    bare = type("P", (fw.LightningModule,), {"forward": lambda self, x: x[0]})
    return list(quiet_trainer(fw).predict(bare(), test_rows())[0].shape)


@fact
def group_checkpoints(fw: Framework) -> Any:
    h, folder, t = _with_hparams(fw), tempfile.mkdtemp(), quiet_trainer(fw)
    full, light, long = f"{folder}/h.ckpt", f"{folder}/w.ckpt", f"{folder}/h3.ckpt"
    t.fit(h(5, lr=0.2), train_rows())
    t.save_checkpoint(full)
    t.save_checkpoint(light, weights_only=True)
    content = torch.load(full, weights_only=False)
    longer = quiet_trainer(fw, max_epochs=3)
    longer.fit(h(5), train_rows())
    longer.save_checkpoint(long)
    loaded = h.load_from_checkpoint(full)

    def resume(path: str, epochs: int) -> str:
        return answer_of(lambda: quiet_trainer(fw, max_epochs=epochs).fit(h(5), train_rows(), ckpt_path=path))

    return {
        "ckpt_keys": sorted(content),
        "ckpt_keys_weights_only": sorted(torch.load(light, weights_only=False)),
        "ckpt_hparams": dict(content["hyper_parameters"]),
        "ckpt_loops": {k: sorted(v) for k, v in content["loops"].items()},
        "ckpt_fit_loop_epoch_progress": content["loops"]["fit_loop"].get("epoch_progress"),
        "ckpt_epoch_global_step_after_fit_end": [content["epoch"], content["global_step"]],
        "load_from_checkpoint_hparams": dict(loaded.hparams),
        "load_override": dict(h.load_from_checkpoint(full, lr=0.7).hparams),
        "load_override_shape": answer_of(lambda: h.load_from_checkpoint(full, width=9)),
        "load_on_instance": answer_of(lambda: loaded.load_from_checkpoint(full)),
        "resume_from_weights_only": resume(light, 2),
        "resume_with_smaller_max_epochs": resume(long, 1),
        "ckpt_path_last_missing": resume("last", 1),
        "ckpt_path_best_missing": resume("best", 1),
        "ckpt_path_not_there": resume("/nope.ckpt", 1),
    }


@fact
def two_optimizers_automatic(fw: Framework) -> Any:
    def two(m: Any) -> Any:
        return [torch.optim.SGD(m.net[0].parameters(), 0.1), torch.optim.SGD(m.net[3].parameters(), 0.1)]

    return _fit(fw, configure=two)


def _manual(fw: Framework, **options: Any) -> str:
    net = classifier(fw)
    net.automatic_optimization = False
    return answer_of(lambda: quiet_trainer(fw, **options).fit(net, train_rows()))


@fact
def manual_with_clip_arg(fw: Framework) -> Any:
    return _manual(fw, gradient_clip_val=1.0)


@fact
def manual_with_accumulate(fw: Framework) -> Any:
    return _manual(fw, accumulate_grad_batches=2)


@fact
def plateau_without_monitor(fw: Framework) -> Any:
    def configure(m: Any) -> Any:
        opt = torch.optim.SGD(m.parameters(), 0.1)
        return [opt], [torch.optim.lr_scheduler.ReduceLROnPlateau(opt)]

    return _fit(fw, configure=configure)


@fact
def lr_monitor_without_logger(fw: Framework) -> Any:
    t = quiet_trainer(fw, [fw.callbacks.LearningRateMonitor()])
    return answer_of(lambda: t.fit(classifier(fw), train_rows()))


@fact
def ckpt_topk2_no_monitor(fw: Framework) -> Any:
    return answer_of(lambda: fw.callbacks.ModelCheckpoint(save_top_k=2))


@fact
def ckpt_two_triggers(fw: Framework) -> Any:
    return answer_of(lambda: fw.callbacks.ModelCheckpoint(every_n_epochs=1, every_n_train_steps=1))


@fact
def two_same_checkpoint_callbacks(fw: Framework) -> Any:
    save = fw.callbacks.ModelCheckpoint
    return answer_of(lambda: quiet_trainer(fw, [save(), save()], enable_checkpointing=True))


@fact
def loader_and_datamodule(fw: Framework) -> Any:
    net, data = classifier(fw), fw.LightningDataModule()
    return answer_of(lambda: quiet_trainer(fw).fit(net, train_rows(), datamodule=data))


@fact
def step_returns_list(fw: Framework) -> Any:
    return _fit(fw, body={"training_step": lambda self, batch, batch_idx: [1]})


@fact
def step_dict_without_loss(fw: Framework) -> Any:
    return _fit(fw, body={"training_step": lambda self, batch, batch_idx: {"a": 1}})


@fact
def loss_without_grad(fw: Framework) -> Any:
    return _fit(fw, body={"training_step": lambda self, batch, batch_idx: torch.tensor(1.0)})


@fact
def group_devices(fw: Framework) -> Any:
    asked = {
        "devices_0": {"devices": 0},
        "accelerator_bad": {"accelerator": "abc"},
        "strategy_bad": {"strategy": "abc"},
        "gpu_missing": {"accelerator": "gpu"},
        "tpu_missing": {"accelerator": "tpu"},
    }
    return {name: answer_of(lambda options=options: quiet_trainer(fw, **options)) for name, options in asked.items()}


@fact
def attrs_before_fit(fw: Framework) -> Any:
    t = quiet_trainer(fw)
    names = ("max_epochs", "global_step", "num_devices", "world_size", "is_global_zero")
    return {**{name: getattr(t, name) for name in names}, "strategy": type(t.strategy).__name__}


@fact
def group_which_weights(fw: Framework) -> Any:
    def fitted() -> tuple[Any, Any]:
        save = fw.callbacks.ModelCheckpoint(dirpath=tempfile.mkdtemp(), monitor="m", mode="min")
        net, t = _counting_weight(fw), quiet_trainer(fw, [save], max_epochs=3, enable_checkpointing=True)
        t.fit(net, train_rows())
        return net, t

    net, t = fitted()
    after, without_model = net.w.item(), t.test(dataloaders=test_rows(), verbose=False)
    net, t = fitted()
    return {
        "weights_after_fit_are_last": after,
        "test_no_args_after_fit_uses": without_model,
        "test_with_model_uses": t.test(net, test_rows(), verbose=False),
        "test_ckpt_best_uses": t.test(net, test_rows(), ckpt_path="best", verbose=False),
    }
