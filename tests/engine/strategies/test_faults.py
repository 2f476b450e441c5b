"""Planted faults: each ends in a sentence that names the rank, in seconds (bounds are for a loaded machine)."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from engine import Callback
from engine.errors import CheckpointError, MisconfigurationException
from engine.strategies import DDPStrategy, FSDPStrategy

from tests.engine.toys import BoringModel, loader, quiet_trainer

SECONDS = 30.0  # on a quiet machine each takes 1 to 6


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def fit(module: Any, strategy: Any = "ddp_fork", *callbacks: Callback, data: Any = None, **options: Any) -> Any:
    trainer = quiet_trainer(devices=2, strategy=strategy, callbacks=list(callbacks), max_epochs=1, **options)
    trainer.fit(module, loader(12, 2) if data is None else data)
    return trainer


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alone(rank: int, sender: Any) -> None:
    """Be one of two ranks, of which the other never comes; send what fit raises."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(closed_port()))
    try:
        strategy = DDPStrategy(start_timeout=timedelta(seconds=3))
        quiet_trainer(devices=2, strategy=strategy, max_epochs=1).fit(BoringModel(), loader())
    except BaseException as error:
        sender.send("".join(traceback.format_exception_only(error)))
        raise


def said_alone(rank: int) -> str:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=alone, args=(rank, sender))
    process.start()
    assert receiver.poll(SECONDS), "said nothing"
    process.join(SECONDS)
    said: str = receiver.recv()
    return said


def test_a_rank_that_does_not_come_is_named() -> None:
    assert "Rank 0 of 2 waited 3 s, but rank 1 did not come" in said_alone(0)


def test_a_wrong_address_is_named_with_the_rank_that_asked_there() -> None:
    assert "Rank 1 found nobody at 127.0.0.1:" in said_alone(1)


class OnRankOne(Callback):
    """Does something on rank 1 alone, after the second batch of training or in validation."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 1:
            self.act()


def crash() -> None:
    raise ValueError("row 7 is broken")


class OnRankOneInValidation(OnRankOne):
    def on_train_batch_end(self, *_: Any) -> None:
        """Do nothing yet."""

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_rank == 1:
            self.act()


@pytest.mark.parametrize("where", [OnRankOne, OnRankOneInValidation])
def test_an_exception_of_one_rank_is_the_only_one_shown(where: type[OnRankOne]) -> None:
    trainer = quiet_trainer(devices=2, strategy="ddp_fork", callbacks=[where(crash)], max_epochs=1)
    with within(SECONDS), pytest.raises(ValueError, match="row 7 is broken") as caught:
        trainer.fit(BoringModel(), loader(12, 2), loader(12, 2))
    *_, note = caught.value.__notes__
    assert "Rank 1 of 2 failed" in note
    assert "in crash" in note
    assert note.count("Traceback") == 1


def test_a_rank_that_is_killed_is_named() -> None:
    with within(SECONDS), pytest.raises(RuntimeError, match="Rank 1 of 2 was killed by SIGKILL"):
        fit(BoringModel(), "ddp_fork", OnRankOne(lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_rank_that_hangs_is_named() -> None:
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=3))
    with within(2 * SECONDS), pytest.raises(RuntimeError) as caught:
        fit(BoringModel(), strategy, OnRankOne(lambda: time.sleep(600)))
    assert "rank 1 did not take part" in str(caught.value.__notes__)


class LogsByRank(BoringModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(f"only_{self.global_rank}", 1.0, sync_dist=True)


def test_metrics_with_other_names_are_named_with_their_ranks() -> None:
    trainer = quiet_trainer(devices=2)
    with within(SECONDS), pytest.raises(MisconfigurationException, match=r"rank 0 has `only_0.*rank 1 has `only_1"):
        trainer.validate(LogsByRank(), loader(8, 2), verbose=False)


class Skips(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if self.global_rank == 1 else super().training_step(batch, batch_idx)


def test_a_batch_that_one_rank_skips_is_named() -> None:
    with within(SECONDS), pytest.raises(MisconfigurationException, match="returned None on rank 1 of 2"):
        fit(Skips())


class Saves(Callback):
    """Every rank saves its part; rank 1 may write no more than a few bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        try:
            trainer.save_checkpoint(self.path)
        finally:
            if trainer.global_rank == 1:  # for what the rank has to say
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_of_one_rank_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with within(SECONDS), pytest.raises(CheckpointError, match=r"could not be written \(rank 1: "):
        fit(BoringModel(), FSDPStrategy(state_dict_type="sharded"), Saves(path))
    assert not path.exists()
