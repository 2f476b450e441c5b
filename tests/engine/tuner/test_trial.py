"""A trial leaves no trace: module, data module, optimizers, counters, generators."""

from __future__ import annotations

import random
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import engine
import numpy as np
import pytest
import torch
from engine.fit import fit
from engine.tuner.trial import beside, holders, set_attribute, unchanged
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tests.engine.callbacks.scripted import Scripted, rows, trainer


class Busy(Scripted):
    """Changes everything it can in its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.count, self.seen, self.by_name = 0, [], {"a": 1}
        self.mask = torch.zeros(2)
        self.noise = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.count += 1
        self.seen.append(batch_idx)
        self.by_name["b"] = 2
        self.mask += torch.rand(2)
        self.late = torch.randn(1, generator=self.noise)
        self.eval()
        return super().training_step(batch, batch_idx)

    def state(self) -> dict[str, Any]:
        return {
            **{name: tensor.clone() for name, tensor in self.state_dict().items()},
            "attributes": (self.count, list(self.seen), dict(self.by_name), self.mask.tolist(), hasattr(self, "late")),
            "generator": self.noise.get_state(),
            "modes": [module.training for module in self.modules()],
        }


class Probe(engine.Callback):
    """Runs a trial when `fit` starts, and keeps what was before and after."""

    def __init__(self, steps: int = 9) -> None:
        self.steps = steps
        self.before: Any = None
        self.after: Any = None

    def look(self, trainer: Any, net: Any) -> Any:
        counters = (trainer.global_step, trainer.current_epoch, trainer.total_batches, trainer.log_step)
        optimizer = trainer.optimizers[0].state_dict()
        settings = (trainer.max_steps, trainer.limit_val_batches, list(trainer.callbacks), trainer.should_stop)
        return net.state(), counters, optimizer, settings, dict(trainer.callback_metrics), torch.get_rng_state()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.before = self.look(trainer, pl_module)
        with unchanged(trainer.run), beside(trainer.run, max_steps=self.steps) as trial:
            fit(trial)
            assert trainer.global_step == self.steps
            assert pl_module.count >= self.steps
        self.after = self.look(trainer, pl_module)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"val_check_interval": 7}])
def test_nothing_is_left_of_a_trial(tmp_path: Path, options: Any) -> None:
    probe = Probe()
    trainer(tmp_path, probe, max_epochs=1, **options).fit(Busy(), rows(shuffle=True), rows())
    for before, after in zip(probe.before, probe.after, strict=True):
        assert same(before, after)


def test_the_run_after_a_trial_is_the_run_without_it(tmp_path: Path) -> None:
    nets = []
    for callbacks in ((), (Probe(),)):
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(7)
        net = Busy()
        trainer(tmp_path, *callbacks, max_epochs=2).fit(net, rows(shuffle=True, generator=generator), rows())
        nets.append(net)
    assert same(nets[0].state_dict(), nets[1].state_dict())


def test_an_error_in_a_trial_leaves_nothing_either(tmp_path: Path) -> None:
    class Fails(Busy):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            if self.count == 4:
                raise RuntimeError("in a trial")
            return loss

    class Catch(Probe):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            with pytest.raises(RuntimeError, match="in a trial"):
                super().on_fit_start(trainer, pl_module)
            self.after = self.look(trainer, pl_module)
            trainer.limit_train_batches = 0

    probe = Catch()
    trainer(tmp_path, probe, max_epochs=1, limit_val_batches=0).fit(Fails(), rows(), rows())
    for before, after in zip(probe.before[:3], probe.after[:3], strict=True):
        assert same(before, after)


@pytest.mark.parametrize("fails", [False, True])
def test_loaders_and_the_generators_of_the_data_are_as_before_a_trial(tmp_path: Path, fails: bool) -> None:
    class Noisy(TensorDataset):
        def __init__(self) -> None:
            super().__init__(torch.ones(12, 3), torch.ones(12, 1))
            self.noise = torch.Generator().manual_seed(1)

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index), torch.rand(1, generator=self.noise)

    class Fails(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            random.random(), np.random.rand(), torch.rand(1)
            if fails and self.trainer.global_step == 3:
                raise RuntimeError("in a trial")
            return super().training_step(batch[0], batch_idx)

    class Look(Probe):
        def look(self, trainer: Any, net: Any) -> Any:
            of_all = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
            return [*map(id, trainer.loaders.values())], [g.get_state() for g in generators], of_all

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.before = self.look(trainer, pl_module)
            with suppress(RuntimeError), unchanged(trainer.run), beside(trainer.run, max_steps=self.steps) as trial:
                fit(trial)
            self.after = self.look(trainer, pl_module)
            trainer.limit_train_batches = 0

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pass

    data = Noisy()
    generators = [torch.Generator().manual_seed(2), torch.Generator().manual_seed(3), data.noise]
    sampler = RandomSampler(data, generator=generators[0])
    loader = DataLoader(data, batch_size=3, sampler=sampler, generator=generators[1])
    probe = Look()
    with pytest.raises(RuntimeError, match="in a trial") if fails else nullcontext():
        trainer(tmp_path, probe, max_epochs=1, limit_val_batches=0).fit(Fails(), loader)
    assert same(probe.before, probe.after)


def test_a_trial_in_training_sees_the_loaders_of_the_run(tmp_path: Path) -> None:
    class Sees(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append((self.trainer.num_training_batches, self.trainer.num_val_batches, self.trainer.val_dataloaders))
            return super().training_step(batch, batch_idx)

    class Midway(engine.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                with unchanged(trainer.run), beside(trainer.run, max_steps=1) as trial:
                    fit(trial)

    seen: list[Any] = []
    trainer(tmp_path, Midway(), max_epochs=2, limit_train_batches=2).fit(Sees(), rows(), rows())
    assert len(seen) == 5
    assert [one == seen[0] for one in seen] == [True] * 5


def test_a_trial_in_the_middle_of_training_changes_nothing(tmp_path: Path) -> None:
    class Midway(engine.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                with unchanged(trainer.run), beside(trainer.run, max_steps=5) as trial:
                    fit(trial)

    nets = []
    for callbacks in ((), (Midway(),)):
        net = Busy()
        torch.manual_seed(7)
        fitted = trainer(tmp_path, *callbacks, max_epochs=3)
        fitted.fit(net, rows(shuffle=True), rows())
        nets.append((net.state_dict(), fitted.global_step, float(fitted.callback_metrics["train_loss"])))
    assert same(nets[0], nets[1])


def test_attributes_are_found_where_they_are(tmp_path: Path) -> None:
    class Data(engine.LightningDataModule):
        def __init__(self, batch_size: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.batch_size = batch_size

        def train_dataloader(self) -> Any:
            return rows(batch_size=self.batch_size)

    class Sets(engine.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            assert len(holders(trainer.run, "batch_size")) == 2
            set_attribute(trainer.run, "batch_size", 7)
            assert holders(trainer.run, "nope") == []

    data = Data()
    fitted = trainer(tmp_path, Sets(), max_epochs=1)
    fitted.fit(Scripted(), datamodule=data)
    assert (data.batch_size, data.hparams["batch_size"], fitted.global_step) == (7, 7, 4)
