"""Three ways to do the same work: a hand-written loop, Lightning, and the engine.

Each takes a Work and a Clock and returns the network it trained, so that the caller can compare the weights.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.benchmarks.work import Clock, Work, loss_of, optimizer_of
from tests.parity.framework import REFERENCE, Framework, load_framework

Contender = Callable[[Work, Clock], nn.Module]


def bare(work: Work, clock: Clock) -> nn.Module:
    """The loop that a person writes by hand: the floor."""
    net, data, metrics = work.model(), work.data(), work.metrics()
    optimizer = optimizer_of(net)
    net.train()
    for _ in range(work.epochs):
        for batch in data:
            clock.tick()
            loss, scores = loss_of(net, batch)
            if metrics is not None:
                metrics.update(scores, batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if metrics is not None:
            metrics.compute()
            metrics.reset()
    return net


def by_framework(name: str, work: Work, clock: Clock, **options: Any) -> nn.Module:
    """The same by `Trainer.fit` of a framework; `options` go to its Trainer."""
    fw, folder = load_framework(name), tempfile.mkdtemp()
    module = make_module(fw, work, clock)
    logger = fw.loggers.CSVLogger(folder) if work.values else False
    trainer = make_trainer(fw, **{"max_epochs": work.epochs, "logger": logger, "default_root_dir": folder, **options})
    trainer.fit(module, work.data())
    shutil.rmtree(folder)
    return module.net  # type: ignore[no-any-return]


def make_trainer(fw: Framework, **options: Any) -> Any:
    """A Trainer without files and display, on one CPU, as the engine is by default (parity off)."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return fw.root.Trainer(**{**quiet, **options})


def make_module(fw: Framework, work: Work, clock: Clock) -> Any:
    """The work as a LightningModule."""

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = work.model()
            self.metrics = work.metrics()
            self.names = [f"value_{i}" for i in range(work.values)]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            clock.tick()
            loss, scores = loss_of(self.net, batch)
            for name in self.names:
                self.log(name, loss)
            if self.metrics is not None:
                self.metrics.update(scores, batch[1])
                self.log_dict(self.metrics, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            clock.tick()
            self.log("loss", loss_of(self.net, batch)[0])

        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            clock.tick()
            return self.net(batch[0])  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.net)

    return Net()


def bare_validation(work: Work, clock: Clock) -> nn.Module:
    """Validation by hand: the loss's mean over all rows."""
    net, total, rows = work.model(), torch.zeros(()), 0
    net.eval()
    with torch.inference_mode():
        for batch in work.data():
            clock.tick()
            total += loss_of(net, batch)[0] * len(batch[0])
            rows += len(batch[0])
    (total / rows).item()
    return net


def framework_validation(name: str, work: Work, clock: Clock) -> nn.Module:
    """Validation by `Trainer.validate`, which logs the loss by epoch."""
    fw = load_framework(name)
    module = make_module(fw, work, clock)
    make_trainer(fw).validate(module, work.data(), verbose=False)
    return module.net  # type: ignore[no-any-return]


def bare_prediction(work: Work, clock: Clock) -> nn.Module:
    """Prediction by hand: everything is kept."""
    net, out = work.model(), []
    net.eval()
    with torch.inference_mode():
        for batch in work.data():
            clock.tick()
            out.append(net(batch[0]))
    return net


def framework_prediction(name: str, work: Work, clock: Clock) -> nn.Module:
    """Prediction by `Trainer.predict`."""
    fw = load_framework(name)
    module = make_module(fw, work, clock)
    make_trainer(fw).predict(module, work.data())
    return module.net  # type: ignore[no-any-return]


NAMES = {"lightning": REFERENCE, "ours": "engine"}


def training(**options: Any) -> dict[str, Contender]:
    """Contenders for training: name -> function; one that is not installed is left out. `options` are of Trainers."""
    return _all(bare, functools.partial(by_framework, **options))


def validation() -> dict[str, Contender]:
    """Contenders for validation."""
    return _all(bare_validation, framework_validation)


def prediction() -> dict[str, Contender]:
    """Contenders for prediction."""
    return _all(bare_prediction, framework_prediction)


def _all(by_hand: Contender, framework: Callable[..., nn.Module]) -> dict[str, Contender]:
    return {"bare": by_hand, **{name: functools.partial(framework, fw) for name, fw in installed().items()}}


@functools.cache
def installed() -> dict[str, str]:
    """The frameworks that can be imported, by the name that the table gives them."""
    warnings.filterwarnings("ignore")
    found = {}
    for name, framework in NAMES.items():
        try:
            load_framework(framework).root.Trainer  # noqa: B018
        except (ImportError, AttributeError) as error:
            print(f"{name} is left out: {error}", file=os.sys.stderr)  # type: ignore[attr-defined]
        else:
            found[name] = framework
    return found
