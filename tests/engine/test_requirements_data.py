"""Requirements 29 to 38: data modules, loaders and what happens to a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from engine import LightningDataModule
from engine.errors import MisconfigurationException
from engine.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from toys import BoringModel, Rows, dataset, loader, quiet_trainer


class Data(LightningDataModule):
    """Notes what is asked of it."""

    def __init__(self, rows: int = 12) -> None:
        super().__init__()
        self.rows = rows
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(f"setup {stage}")

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage}")

    def train_dataloader(self) -> Any:
        self.calls.append("train")
        return loader(self.rows)

    def val_dataloader(self) -> Any:
        self.calls.append("val")
        return loader(self.rows)

    def test_dataloader(self) -> Any:
        self.calls.append("test")
        return loader(self.rows, batch_size=3)

    def predict_dataloader(self) -> Any:
        self.calls.append("predict")
        return loader(self.rows)


class OwnLoaders(BoringModel):
    """A module with its own loaders."""

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader()

    def test_dataloader(self) -> Any:
        return loader()


class Sees(BoringModel):
    """Notes every batch of every stage; it trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch)


def test_r29_r30_each_stage_gets_its_loader_from_the_data_module() -> None:
    data, model, trainer = Data(), BoringModel(), quiet_trainer(num_sanity_val_steps=0)
    trainer.fit(model, datamodule=data)
    assert data.calls == ["prepare_data", "setup fit", "train", "val", "teardown fit"]
    for call, method in ((trainer.validate, "val"), (trainer.test, "test"), (trainer.predict, "predict")):
        data.calls.clear()
        call(model, datamodule=data)
        stage = call.__name__
        assert data.calls == ["prepare_data", f"setup {stage}", method, f"teardown {stage}"]
    assert data.trainer is trainer


def test_r29_a_data_module_from_datasets() -> None:
    data = LightningDataModule.from_datasets(dataset(8), dataset(6), dataset(4), dataset(2), batch_size=2)
    stages = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    assert [len(one) for one in stages] == [4, 3, 2, 1]


def test_r29_a_data_module_keeps_hyper_parameters_and_state(tmp_path: Any) -> None:
    class Stateful(Data):
        def __init__(self, rows: int = 12) -> None:
            super().__init__(rows)
            self.save_hyperparameters()
            self.counter = 0

        def state_dict(self) -> dict[str, Any]:
            return {"counter": self.counter}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.counter = state_dict["counter"]

    data, trainer = Stateful(rows=8), quiet_trainer()
    data.counter = 5
    trainer.fit(BoringModel(), data)
    trainer.save_checkpoint(tmp_path / "data.ckpt")
    again = Stateful(rows=8)
    quiet_trainer(max_epochs=2).fit(BoringModel(), again, ckpt_path=tmp_path / "data.ckpt")
    assert again.counter == 5
    assert Stateful.load_from_checkpoint(tmp_path / "data.ckpt").rows == 8


def test_r17_r31_four_ways_to_give_fit_its_data() -> None:
    weights = []
    for give in (
        lambda trainer, model: trainer.fit(model, Data()),
        lambda trainer, model: trainer.fit(model, loader()),
        lambda trainer, model: trainer.fit(model, loader(), loader()),
        lambda trainer, model: trainer.fit(model),
    ):
        model, trainer = OwnLoaders(), quiet_trainer()
        give(trainer, model)
        assert trainer.global_step == 3
        weights.append(model.layer.weight.detach().clone())
    assert all(torch.equal(weights[0], other) for other in weights)
    assert len(quiet_trainer().test(OwnLoaders(), verbose=False)) == 1


def test_r32_the_users_loader_is_left_as_it_is() -> None:
    mine = loader(shuffle=True, batch_size=3, drop_last=True)
    trainer = quiet_trainer()
    trainer.fit(BoringModel(), mine, mine)
    assert trainer.train_dataloader is mine
    assert trainer.val_dataloaders is mine


def test_r33_the_mean_is_right_with_an_unequal_last_batch() -> None:
    model = BoringModel()
    for size in (4, 3, 10):
        result = quiet_trainer().validate(model, loader(10, batch_size=size), verbose=False)
        x, y = dataset(10).tensors
        assert result[0]["val_loss"] == pytest.approx(model.loss((x, y)).item(), rel=1e-5)


def test_r35_training_takes_dicts_lists_and_nests_of_loaders() -> None:
    nest = {"a": DataLoader(Rows(4), batch_size=2), "b": [DataLoader(Rows(6), batch_size=2)]}
    model = Sees()
    quiet_trainer().fit(model, nest)
    assert [(batch["a"].tolist()[0][0], batch["b"][0].tolist()[0][0]) for batch in model.seen] == [
        (0, 0), (2, 2), (0, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("max_size_cycle", [0, 2, 0]), ("min_size", [0, 2]), ("max_size", [0, 2, None])],
)
def test_r35_loaders_are_combined_in_the_mode_asked_for(mode: str, expected: list[Any]) -> None:
    model = Sees()
    both = CombinedLoader([DataLoader(Rows(4), batch_size=2), DataLoader(Rows(6), batch_size=2)], mode)
    quiet_trainer().fit(model, both)
    assert [None if short is None else short[0].item() for short, _ in model.seen] == expected


def test_r35_evaluation_walks_several_loaders_in_turn_and_tells_them_apart() -> None:
    class Several(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            order.append((dataloader_idx, batch_idx))
            self.log("loss", self.loss(batch))

    order: list[tuple[int, int]] = []
    results = quiet_trainer().validate(Several(), [loader(8), loader(4)], verbose=False)
    assert order == [(0, 0), (0, 1), (1, 0)]
    assert [list(one) for one in results] == [["loss/dataloader_idx_0"], ["loss/dataloader_idx_1"]]


def test_r36_transfer_hooks_run_in_every_stage_and_can_tell_training() -> None:
    class Augments(OwnLoaders):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[str, bool]] = []

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.training == self.trainer.training
            return batch

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen.append((str(self.trainer.state.stage), self.trainer.training))
            x, y = batch
            return (x + 1 if self.trainer.training else x), y

        def predict_dataloader(self) -> Any:
            return loader()

    model = Augments()
    trainer = quiet_trainer(limit_train_batches=1, limit_val_batches=1, limit_test_batches=1, limit_predict_batches=1)
    trainer.fit(model)
    trainer.test(model, verbose=False)
    trainer.predict(model)
    assert [training for _, training in model.seen] == [False, True, False, False, False]
    assert len({stage for stage, _ in model.seen}) == 5


def test_r36_the_data_modules_transfer_hook_wins() -> None:
    class Shifts(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return "shifted"

    model = Sees()
    quiet_trainer(limit_val_batches=0).fit(model, Shifts())
    assert model.seen == ["shifted"] * 3


def test_r37_another_data_module_needs_no_change_of_the_model() -> None:
    model = BoringModel()
    for rows, steps in ((12, 3), (20, 5)):
        trainer = quiet_trainer()
        trainer.fit(model, Data(rows))
        assert trainer.global_step == steps


class Stream(IterableDataset[Any]):
    """Batches without a length."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(dataset(self.rows))


def test_r38_a_stream_without_length_is_trained_and_validated_at_its_end() -> None:
    class Last(BoringModel):
        flags: tuple[bool, ...] = ()

        def on_train_batch_end(self, *_: Any) -> None:
            self.flags = (*self.flags, self.trainer.is_last_batch)

    model, stream = Last(), DataLoader(Stream(10), batch_size=4)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model, stream, stream)
    assert trainer.num_training_batches == float("inf")
    assert model.flags == (False, False, True) * 2
    assert "val_loss" in trainer.callback_metrics


def test_r38_a_share_of_a_stream_is_refused() -> None:
    stream = DataLoader(Stream(10), batch_size=4)
    with pytest.raises(MisconfigurationException, match="whole number of batches"):
        quiet_trainer(limit_train_batches=0.5).fit(BoringModel(), stream)
    with pytest.raises(MisconfigurationException, match="has no length"):
        quiet_trainer(val_check_interval=0.5).fit(BoringModel(), stream, loader())


def test_r38_any_iterable_and_own_loader_class_will_do() -> None:
    class Own:
        def __iter__(self) -> Iterator[Any]:
            return iter([dataset(4).tensors, dataset(4, seed=1).tensors])

    for data in (Own(), iter([dataset(4).tensors] * 2), dataset(4)):
        trainer = quiet_trainer()
        trainer.fit(BoringModel(), data)
        assert trainer.global_step in (2, 4)


class Named(NamedTuple):
    """A batch with names."""

    x: Tensor
    text: list[str]


@dataclass
class Structured:
    """A batch that is a dataclass."""

    x: Tensor
    text: str


@pytest.mark.parametrize(
    "batch",
    [Named(torch.ones(2), ["a", "b"]), Structured(torch.ones(2), "a"), [("a", torch.ones(2))], {"x": None}, "words", 3],
    ids=["named tuple", "dataclass", "tuple in list", "dict", "text", "number"],
)
def test_r16_every_batch_structure_arrives_as_it_is(batch: Any) -> None:
    class Own:
        def __iter__(self) -> Iterator[Any]:
            return iter([batch])

    model = Sees()
    quiet_trainer().fit(model, Own())
    assert len(model.seen) == 1
    assert type(model.seen[0]) is type(batch)
    assert str(model.seen[0]) == str(batch)


def test_a_data_module_may_be_a_dataclass() -> None:
    @dataclass
    class Short(LightningDataModule):
        rows: int = 8

        def __post_init__(self) -> None:
            super().__init__()

        def train_dataloader(self) -> Any:
            return loader(self.rows)

    trainer = quiet_trainer()
    trainer.fit(BoringModel(), Short())
    assert trainer.global_step == 2


def test_a_data_set_may_be_filled_while_training() -> None:
    class Grows(BoringModel):
        def on_train_epoch_end(self) -> None:
            stream.rows += 4

    stream, model = Stream(4), Grows()
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(model, DataLoader(stream, batch_size=4))
    assert trainer.global_step == 1 + 2 + 3
