"""Fine-tuning: what is frozen, what joins the optimizer when, and that a resumed run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from engine.errors import EngineWarning, MisconfigurationException
from torch import nn

from tests.engine.callbacks.scripted import Scripted, rows, trainer

Schedulers = torch.optim.lr_scheduler


class Net(Scripted):
    """A backbone with a batch norm, and a head."""

    def __init__(self, schedule: Any = None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
        self.schedule = schedule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.backbone(x))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), lr=0.1, momentum=0.9)
        return optimizer if self.schedule is None else ([optimizer], [self.schedule(optimizer)])


class Watch(engine.Callback):
    """Notes learning rates by group, and how far the backbone has moved, after each epoch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.weights: list[torch.Tensor] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.rates.append([round(group["lr"], 6) for group in trainer.optimizers[0].param_groups])
        self.weights.append(pl_module.backbone[0].weight.detach().clone())


def test_the_backbone_waits_and_then_follows(tmp_path: Path) -> None:
    watch, net = Watch(), Net()
    trainer(tmp_path, BackboneFinetuning("2ep", lambda epoch: 3.0, train_bn=False), watch, max_epochs=6).fit(
        net, rows()
    )
    assert watch.rates == [[0.1], [0.1], [0.1, 0.01], [0.1, 0.03], [0.1, 0.09], [0.1, 0.1]]
    assert torch.equal(watch.weights[0], watch.weights[1])
    assert not torch.equal(watch.weights[1], watch.weights[2])


def test_a_rate_of_its_own_may_pass_the_heads(tmp_path: Path) -> None:
    watch = Watch()
    finetuning = BackboneFinetuning(1, backbone_initial_lr=0.08, should_align=False)
    trainer(tmp_path, finetuning, watch, max_epochs=3).fit(Net(), rows())
    assert watch.rates == [[0.1], [0.1, 0.08], [0.1, 0.16]]


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norms_train_or_not(tmp_path: Path, train_bn: bool) -> None:
    net = Net()
    before = net.backbone[1].running_mean.clone()
    trainer(tmp_path, BackboneFinetuning(9, train_bn=train_bn), max_epochs=1).fit(net, rows())
    assert net.backbone[1].weight.requires_grad == train_bn
    assert torch.equal(net.backbone[1].running_mean, before) != train_bn
    assert not net.backbone[0].weight.requires_grad


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: Schedulers.LambdaLR(o, lambda epoch: 0.5**epoch),
        lambda o: Schedulers.StepLR(o, 1, 0.5),
        lambda o: Schedulers.CosineAnnealingLR(o, 6),
        lambda o: {"scheduler": Schedulers.OneCycleLR(o, max_lr=0.2, total_steps=42), "interval": "step"},
        lambda o: Schedulers.SequentialLR(
            o, [Schedulers.LambdaLR(o, lambda e: 1.0), Schedulers.ExponentialLR(o, 0.9)], [2]
        ),
    ],
    ids=["lambda", "step", "cosine", "onecycle", "sequential"],
)
def test_schedulers_take_the_new_group(tmp_path: Path, schedule: Any) -> None:
    watch = Watch()
    trainer(tmp_path, BackboneFinetuning(2), watch, max_epochs=5).fit(Net(schedule), rows())
    assert [len(rates) for rates in watch.rates] == [1, 1, 2, 2, 2]
    assert all(backbone <= head for head, backbone in watch.rates[2:])


@pytest.mark.parametrize("schedule", [None, lambda o: Schedulers.LambdaLR(o, lambda epoch: 0.9**epoch)])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_continued_run_is_the_same_run(tmp_path: Path, stop: int, schedule: Any) -> None:
    whole, again = Net(schedule), Net(schedule)
    trainer(tmp_path, BackboneFinetuning(2, train_bn=False), max_epochs=5).fit(whole, rows())
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(tmp_path, BackboneFinetuning(2, train_bn=False), saver, max_epochs=stop).fit(Net(schedule), rows())
    trainer(tmp_path, BackboneFinetuning(2, train_bn=False), max_epochs=5).fit(
        again, rows(), ckpt_path=saver.last_model_path
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_own_rules_are_a_subclass(tmp_path: Path) -> None:
    class Later(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze([pl_module.backbone[0], [pl_module.backbone[3]]])

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.backbone[3], optimizer)

    watch, net = Watch(), Net()
    trainer(tmp_path, Later(), watch, max_epochs=2).fit(net, rows())
    assert watch.rates == [[0.1], [0.1, 0.01]]
    assert not net.backbone[0].weight.requires_grad


def test_methods_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="freeze_before_training"):
        trainer(tmp_path, BaseFinetuning()).fit(Net(), rows())


def test_parameters_are_not_added_twice() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.warns(EngineWarning, match="2 of 2"):
        BaseFinetuning.unfreeze_and_add_param_group(layer, optimizer)
    assert len(optimizer.param_groups) == 1


def test_modules_with_parameters_of_their_own_are_found() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(1)), nn.Linear(1, 1)

    found = BaseFinetuning.flatten_modules(nn.ModuleDict({"a": Scale()}))
    assert [type(module).__name__ for module in found] == ["Scale", "Linear"]
    BaseFinetuning.freeze(Scale())
    assert len(list(BaseFinetuning.filter_params(found))) == 3


def test_a_module_without_backbone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"\['layer'\]"):
        trainer(tmp_path, BackboneFinetuning()).fit(Scripted(), rows())
