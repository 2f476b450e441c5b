"""Random state: seeding, saving, restoring, and seeds of loader workers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.errors import MisconfigurationException
from engine.seed import isolate_rng, rng_state, seed_everything, set_rng_state, worker_init_fn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    monkeypatch.delenv("PL_GLOBAL_SEED")
    monkeypatch.delenv("PL_SEED_WORKERS")
    with isolate_rng():
        yield


def draw() -> list[float]:
    """Advance every generator and return what came."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert seed_everything(7) == 7
    first = draw()
    seed_everything(8)
    assert draw() != first
    seed_everything(7)
    assert draw() == first


def test_writes_the_environment_for_processes_started_later() -> None:
    seed_everything(5, workers=True)
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("5", "1")
    seed_everything(5)
    assert os.environ["PL_SEED_WORKERS"] == "0"


def test_without_a_seed_the_environment_decides_and_then_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seed_everything() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert seed_everything() == 11


@pytest.mark.parametrize("seed", [-1, 2**32, "many", 1.5, float("inf"), [1]])
def test_refuses_what_is_no_seed(seed: int) -> None:
    with pytest.raises(MisconfigurationException, match="0 to 4294967295"):
        seed_everything(seed)


def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "abc")
    with pytest.raises(MisconfigurationException, match="PL_GLOBAL_SEED='abc'"):
        seed_everything()


def test_state_survives_a_file_read_with_weights_only(tmp_path: Path) -> None:
    draw()
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [draw(), draw()]
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw(), draw()] == expected


def test_isolate_rng_puts_everything_back_also_after_an_error() -> None:
    state = rng_state()
    expected = draw()
    set_rng_state(state)
    with suppress(KeyError), isolate_rng():
        draw()
        raise KeyError
    assert draw() == expected


DRAWS = {
    "nothing": lambda: None,
    "uniform": np.random.rand,
    "one normal, the other is stored": np.random.randn,
    "many": lambda: np.random.rand(700),
    "seed": lambda: np.random.seed(3),
    "choice": lambda: np.random.permutation(5),
    "python: uniform": random.random,
    "python: one normal, the other is stored": lambda: random.gauss(0, 1),
    "python: many": lambda: random.getrandbits(32 * 700),
    "python: seed": lambda: random.seed(3),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(list(DRAWS)), max_size=8))
def test_the_state_is_the_present_one_however_little_was_drawn(draws: list[str]) -> None:
    for name in draws:
        DRAWS[name]()
        state = rng_state()
        _, keys, position, has_gauss, cached = np.random.get_state()
        assert state["numpy"][1].tolist() == keys.tolist()
        assert state["numpy"][2:] == [position, has_gauss, cached]
        assert state["python"] == random.getstate()


def test_numpy_s_state_is_the_present_one_where_only_a_stored_normal_number_differs() -> None:
    np.random.seed(0)
    np.random.rand(2)
    assert rng_state()["numpy"][3] == 0
    np.random.seed(0)
    np.random.randn()  # as many words drawn as by the two above
    assert rng_state()["numpy"][3] == 1


def test_python_s_state_is_the_present_one_where_only_a_stored_normal_number_differs() -> None:
    random.seed(0)
    random.random(), random.random()
    assert rng_state()["python"][2] is None
    random.seed(0)
    random.gauss(0, 1)  # as many words drawn as by the two above
    assert rng_state()["python"][2] is not None


class _Draws(Dataset[tuple[float, float, float]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_workers_of_all_ranks_draw_different_numbers_and_the_same_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(rank: int) -> list[tuple[float, ...]]:
        monkeypatch.setattr("engine.seed.rank_zero_only.rank", rank)
        seed_everything(1)
        loader = DataLoader(_Draws(), batch_size=None, num_workers=2, worker_init_fn=worker_init_fn)
        return [tuple(row) for row in loader]

    first, second = rows(0), rows(1)
    assert len({value for row in first + second for value in row}) == 24
    assert rows(0) == first
