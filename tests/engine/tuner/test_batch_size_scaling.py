"""The batch size finder: the order of sizes, memory that is full, loaders from anywhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import BatchSizeFinder
from engine.errors import EngineWarning, MisconfigurationException
from engine.tuner import Tuner
from engine.tuner.batch_size_scaling import binsearch, is_out_of_memory, power
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from tests.engine.callbacks.scripted import Scripted, rows, trainer


@given(room=st.integers(1, 5000), first=st.integers(1, 64), limit=st.integers(64, 4096))
def test_what_is_found_fits_and_no_more_does(room: int, first: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    assert binsearch(fits, first, limit, 99).size == min(room, limit)
    tried.clear()
    found = power(fits, first, limit, 99)
    assert found.size <= min(room, limit) <= 2 * found.size
    assert found.trials == len(tried)


def test_the_number_of_trials_is_limited() -> None:
    assert power(lambda size: True, 2, 10**6, 5).size == 32
    assert binsearch(lambda size: size < 48, 2, 10**6, 7).size == 32


@pytest.mark.parametrize("search", [power, binsearch])
def test_nothing_may_fit(search: Any) -> None:
    with pytest.raises(MisconfigurationException, match="bf16-mixed"):
        search(lambda size: False, 8, 64, 25)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Attempting to reserve 3G"), True),
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_full_memory_is_told_from_other_errors(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


class Limited(Scripted):
    """Is out of memory above 48 rows; its loaders follow `batch_size`."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.sizes: list[int] = []

    def check(self, batch: Any) -> None:
        if len(batch[0]) > 48:
            raise RuntimeError("CUDA out of memory.")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.check(batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.check(batch)
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.check(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.check(batch)
        return self(batch[0])

    def train_dataloader(self) -> Any:
        return rows(200, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return rows(200, self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class WithoutLoaders(Limited):
    train_dataloader = engine.LightningModule.train_dataloader
    val_dataloader = engine.LightningModule.val_dataloader


class Data(engine.LightningDataModule):
    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return rows(200, self.batch_size)


@pytest.mark.parametrize(("mode", "expected"), [("power", 32), ("binsearch", 45)])
@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_the_size_is_found_and_set(tmp_path: Path, mode: str, expected: int, method: Any) -> None:
    net = Limited()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert Tuner(trainer(tmp_path)).scale_batch_size(net, method=method, mode=mode) == expected
    assert net.batch_size == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_a_search_that_ends_with_the_whole_data_set_says_so(tmp_path: Path, mode: str) -> None:
    loaders = rows(40, 2)
    with pytest.warns(EngineWarning, match="Batch size 40 is the whole data set"):
        assert Tuner(trainer(tmp_path)).scale_batch_size(WithoutLoaders(), loaders, mode=mode) == 40


def test_a_search_that_ends_where_memory_does_says_nothing_of_the_data(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Tuner(trainer(tmp_path)).scale_batch_size(Limited())
        Tuner(trainer(tmp_path)).scale_batch_size(Limited(), max_val=16)
    assert not [warning for warning in caught if "whole data set" in str(warning.message)]


def test_the_margin_may_be_nothing(tmp_path: Path) -> None:
    assert Tuner(trainer(tmp_path)).scale_batch_size(Limited(), mode="binsearch", margin=0.0) == 48


@pytest.mark.parametrize(("mode", "micro"), [("power", 30), ("binsearch", 40)])
def test_the_largest_part_of_a_batch_that_fits_is_accumulated_to_the_whole(
    tmp_path: Path, mode: str, micro: int
) -> None:
    net, fitted = Limited(), trainer(tmp_path, max_epochs=1)
    found = Tuner(fitted).scale_batch_size(net, mode=mode, effective_batch_size=120)
    assert (found, net.batch_size, fitted.accumulate_grad_batches) == (micro, micro, 120 // micro)
    fitted.fit(net)
    assert fitted.global_step == 2  # 200 rows, 120 in each step


def test_a_batch_that_fits_as_a_whole_is_not_accumulated(tmp_path: Path) -> None:
    finder = BatchSizeFinder(effective_batch_size=40)
    fitted = trainer(tmp_path, finder, max_epochs=1)
    net = Limited()
    fitted.fit(net)
    assert (net.batch_size, fitted.accumulate_grad_batches, fitted.global_step) == (40, 1, 5)


def test_loaders_that_are_passed_are_made_again(tmp_path: Path) -> None:
    net = WithoutLoaders()
    loader = rows(200, 5)
    assert Tuner(trainer(tmp_path)).scale_batch_size(net, loader) == 32
    assert loader.batch_size == 5
    assert net.batch_size == 32


def test_a_module_needs_no_attribute_when_loaders_are_passed(tmp_path: Path) -> None:
    net = WithoutLoaders()
    del net.batch_size
    assert Tuner(trainer(tmp_path)).scale_batch_size(net, rows(200, 5)) == 32
    assert not hasattr(net, "batch_size")


def test_a_data_module_holds_the_size(tmp_path: Path) -> None:
    data, net = Data(), WithoutLoaders()
    del net.batch_size
    assert Tuner(trainer(tmp_path)).scale_batch_size(net, datamodule=data) == 32
    assert data.batch_size == 32


def test_a_validation_step_without_loader_does_not_matter(tmp_path: Path) -> None:
    class NoValidation(Limited):
        val_dataloader = engine.LightningModule.val_dataloader

    assert Tuner(trainer(tmp_path)).scale_batch_size(NoValidation()) == 32


def test_the_rows_are_a_limit(tmp_path: Path) -> None:
    assert Tuner(trainer(tmp_path)).scale_batch_size(WithoutLoaders(), rows(30, 2, drop_last=True)) == 30


@pytest.mark.parametrize(("mode", "expected"), [("power", 32), ("binsearch", 30)])
def test_with_parity_the_last_doubling_may_pass_the_rows(tmp_path: Path, mode: str, expected: int) -> None:
    tuner = Tuner(trainer(tmp_path, parity="lightning"))
    assert tuner.scale_batch_size(WithoutLoaders(), rows(30, 2), mode=mode) == expected


def test_training_goes_on_with_the_size(tmp_path: Path) -> None:
    net, finder = Limited(), BatchSizeFinder()
    fitted = trainer(tmp_path, finder, max_epochs=1)
    fitted.fit(net)
    assert finder.optimal_batch_size == 32
    assert fitted.global_step == 7
    assert fitted.num_val_batches == [7]
    passed = trainer(tmp_path, BatchSizeFinder(), max_epochs=1)
    passed.fit(WithoutLoaders(), rows(200, 5))
    assert passed.global_step == 7


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_goes_on_with_the_size(tmp_path: Path, method: str) -> None:
    seen: list[int] = []

    class Watch(Limited):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return super().forward(x)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])
            super().test_step(batch, batch_idx)

    getattr(trainer(tmp_path, BatchSizeFinder(mode="binsearch")), method)(Watch())
    assert seen[-5:] == [45, 45, 45, 45, 20]


def test_a_search_in_the_middle_of_training(tmp_path: Path) -> None:
    class Milestone(BatchSizeFinder):
        def on_fit_start(self, *_: Any) -> None:
            return

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, pl_module)

    net = Limited(10)
    fitted = trainer(tmp_path, Milestone(), max_epochs=3)
    fitted.fit(net)
    assert net.batch_size == 32
    assert fitted.global_step == 20 + 7 + 7  # the epoch that begins has the new size already


def test_other_errors_are_the_users(tmp_path: Path) -> None:
    class Broken(Limited):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Tuner(trainer(tmp_path)).scale_batch_size(Broken())


def test_loaders_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    class Fixed(Limited):
        def train_dataloader(self) -> Any:
            return rows(200, 8)

    with pytest.raises(MisconfigurationException, match=r"same batch sizes \[8\]"):
        Tuner(trainer(tmp_path)).scale_batch_size(Fixed())


def test_what_cannot_be_made_again_is_named(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows(8).dataset)

    with pytest.raises(MisconfigurationException, match="cannot be made again"):
        Tuner(trainer(tmp_path)).scale_batch_size(WithoutLoaders(), DataLoader(Stream(), batch_size=None))


@pytest.mark.parametrize(
    ("net", "message"),
    [(WithoutLoaders, "no `train_dataloader`"), (Limited, "`bs`")],
)
def test_what_is_missing_is_named(tmp_path: Path, net: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Tuner(trainer(tmp_path)).scale_batch_size(net(), batch_arg_name="bs")


@pytest.mark.parametrize("options", [{"mode": "powr"}, {"margin": 1.0}, {"init_val": 0}, {"steps_per_trial": 0}])
def test_settings_that_cannot_work(options: Any) -> None:
    with pytest.raises(MisconfigurationException):
        BatchSizeFinder(**options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose memory is really filled")
def test_memory_that_is_really_full(tmp_path: Path) -> None:
    class Wide(Limited):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            rows_of_32_mib = torch.zeros(len(batch[0]), 2**23, device=self.device)
            return super().training_step(batch, batch_idx) + 0 * rows_of_32_mib.sum()

        def check(self, batch: Any) -> None:
            pass

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total)  # 2 GiB: 63 rows and a little
    try:
        assert Tuner(trainer(tmp_path, accelerator="gpu")).scale_batch_size(Wide()) == 32
        assert torch.cuda.memory_allocated() < 2**28
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
