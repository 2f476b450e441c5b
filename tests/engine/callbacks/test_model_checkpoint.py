"""ModelCheckpoint by default: what is kept is what the metric says, and `last` is the last state."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import Checkpoint, ModelCheckpoint
from engine.checkpoint_async import AsyncCheckpointIO
from engine.checkpoint_file import read
from engine.errors import EngineWarning, MisconfigurationException
from engine.strategies import SingleDeviceStrategy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.callbacks.scripted import Scripted, names, rows, trainer


class Look(engine.Callback):
    """Reads `last.ckpt` at the start of every epoch and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[int, int]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.look()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.look()

    def look(self) -> None:
        found = list(self.folder.glob("last*.ckpt"))
        if found:
            checkpoint = read(found[0])
            self.seen.append((checkpoint["epoch"], checkpoint["global_step"]))


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize(
    "options", [{"monitor": "val_loss"}, {"save_top_k": 0}, {"every_n_epochs": 3}, {"save_top_k": -1}]
)
def test_last_is_the_epoch_just_finished_always(tmp_path: Path, save_last: Any, options: dict[str, Any]) -> None:
    look = Look(tmp_path)
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=save_last, **options)
    trainer(tmp_path, look, saver, max_epochs=4).fit(Scripted([0.5, 0.9, 0.8, 0.7]), rows(), rows())
    assert look.seen == [(0, 7), (1, 14), (2, 21), (3, 28)]
    assert Path(saver.last_model_path).name == "last.ckpt"


def test_last_is_another_name_of_the_file_saved_at_that_moment(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(tmp_path, saver, max_epochs=2).fit(Scripted(), rows())
    assert Path(saver.last_model_path).samefile(saver.best_model_path)
    assert read(saver.last_model_path)["callbacks"][saver.state_key]["last_model_path"] == saver.last_model_path


def test_a_linked_last_becomes_a_file_when_its_state_is_no_other_file(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last="link")
    trainer(tmp_path, saver, max_epochs=2).fit(Scripted([0.5, 0.9]), rows(), rows())
    assert names(tmp_path) == ["epoch=0-step=7.ckpt", "last.ckpt"]
    assert not Path(saver.last_model_path).is_symlink()
    assert read(saver.best_model_path)["global_step"] == 7


def test_last_is_written_at_every_trigger(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", every_n_train_steps=3, save_last=True)
    steps: list[int] = []

    class Batches(engine.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (tmp_path / "last.ckpt").exists():
                steps.append(read(tmp_path / "last.ckpt")["global_step"])

    trainer(tmp_path, Batches(), saver, max_epochs=2).fit(Scripted([0.5, 0.9]), rows(), rows())
    assert sorted(set(steps)) == [3, 6, 7, 9, 12]


class Failing(Scripted):
    """Raises in the ninth batch."""

    error: BaseException = RuntimeError("out of luck")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 8:
            raise self.error
        return super().training_step(batch, batch_idx)


ERRORS = [RuntimeError("out of luck"), KeyboardInterrupt(), SystemExit(3)]


def expected(error: BaseException) -> Any:
    return contextlib.nullcontext() if isinstance(error, KeyboardInterrupt) else pytest.raises(type(error))


@pytest.mark.parametrize("error", ERRORS)
def test_last_is_written_at_errors_and_interrupts_between_batches(tmp_path: Path, error: BaseException) -> None:
    class After(Scripted):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.trainer.global_step == 8:
                raise error

    with expected(error):
        trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path, save_last=True)).fit(After(), rows())
    assert read(tmp_path / "last.ckpt")["global_step"] == 8


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_within_a_batch_leaves_last_exact_and_a_file_of_its_own(tmp_path: Path, error: BaseException) -> None:
    net = Failing()
    net.error = error
    with expected(error):
        trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path, save_last=True)).fit(net, rows())
    assert names(tmp_path) == ["epoch=0-step=7.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"]
    assert read(tmp_path / "last.ckpt")["global_step"] == 7
    assert read(tmp_path / "epoch=1-step=8.ckpt")["global_step"] == 8


def test_an_error_before_training_writes_nothing(tmp_path: Path) -> None:
    class Broken(Scripted):
        def on_train_start(self) -> None:
            raise RuntimeError("not yet")

    class Early(Scripted):
        def on_fit_start(self) -> None:
            raise RuntimeError("earlier")

    folder = tmp_path / "x"
    with pytest.raises(RuntimeError, match="earlier"):
        trainer(tmp_path, ModelCheckpoint(dirpath=folder, save_last=True, save_on_exception=True)).fit(Early(), rows())
    assert names(folder) == []


def test_save_on_exception_writes_a_file_of_its_own_and_never_over_the_best(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="best", save_on_exception=True, enable_version_counter=False)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, saver).fit(Failing(), rows())
    assert names(tmp_path) == ["best-v1.ckpt", "best.ckpt"]
    assert read(tmp_path / "best.ckpt")["global_step"] == 7
    assert read(tmp_path / "best-v1.ckpt")["global_step"] == 8


def test_a_save_that_fails_at_an_error_does_not_hide_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")

    class Fails(Failing):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == 3:
                raise self.error
            return super().training_step(batch, batch_idx)

    saver = ModelCheckpoint(dirpath=tmp_path / "blocked" / "x", save_last=True)
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, saver).fit(Fails(), rows())
    assert "could not be saved" in caplog.text


# Values are of the weights they are saved with.


def test_a_step_trigger_waits_for_a_fresh_value(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", every_n_train_steps=5, save_top_k=-1)
    trainer(tmp_path, saver, max_epochs=3).fit(Scripted([0.9, 0.8, 0.7]), rows(), rows())
    scores = {Path(path).name: round(float(score), 3) for path, score in saver.best_k_models.items()}
    assert scores == {"epoch=0-step=7.ckpt": 0.9, "epoch=1-step=14.ckpt": 0.8, "epoch=2-step=21.ckpt": 0.7}


@pytest.mark.parametrize(
    ("saver", "options"),
    [
        ({"every_n_train_steps": 2}, {}),
        ({"every_n_train_steps": 2}, {"val_check_interval": 3}),
        ({}, {"val_check_interval": 2}),
        ({"save_on_train_epoch_end": True}, {"val_check_interval": 3}),
        ({"save_on_train_epoch_end": True}, {"check_val_every_n_epoch": 2}),
        ({"train_time_interval": timedelta(0)}, {"val_check_interval": 4, "accumulate_grad_batches": 2}),
        ({"save_top_k": 3, "mode": "max"}, {}),
    ],
)
def test_the_best_file_evaluates_to_the_best_score(tmp_path: Path, saver: Any, options: Any) -> None:
    callback = ModelCheckpoint(dirpath=tmp_path, monitor="real_loss", **saver)
    fitted = trainer(tmp_path, callback, max_epochs=4, **options)
    fitted.fit(Scripted(lr=0.2), rows(), rows())
    assert callback.best_k_models
    for path, score in callback.best_k_models.items():
        again = trainer(tmp_path).validate(Scripted(), rows(), ckpt_path=path, verbose=False)
        assert again[0]["real_loss"] == pytest.approx(float(score), rel=1e-5)


def test_a_training_metric_counts_with_its_epochs_mean(tmp_path: Path) -> None:
    means: list[float] = []

    class Means(engine.Callback):
        runs_last = True

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            means.append(float(trainer.callback_metrics["train_loss"]))

    saver = ModelCheckpoint(dirpath=tmp_path, monitor="train_loss", save_top_k=-1)
    trainer(tmp_path, Means(), saver, val_check_interval=3).fit(Scripted(), rows(), rows())
    assert [float(score) for score in saver.best_k_models.values()] == pytest.approx(means)


def test_a_metric_of_every_step_can_be_monitored_between_validations(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="train_loss_step", every_n_train_steps=3, save_top_k=-1)
    trainer(tmp_path, saver, max_epochs=2).fit(Scripted(), rows(), rows())
    assert names(tmp_path) == [f"epoch={e}-step={s}.ckpt" for e, s in ((0, 3), (0, 6), (1, 12), (1, 9))]


# Which files are kept.


def scores_of(tmp_path: Path, values: list[float], **options: Any) -> tuple[ModelCheckpoint, dict[int, float]]:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", **options)
    fitted = trainer(tmp_path, saver, max_epochs=len(values), limit_train_batches=1, num_sanity_val_steps=0)
    fitted.fit(Scripted(values), rows(), rows())
    return saver, {read(path)["epoch"]: float(score) for path, score in saver.best_k_models.items()}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), min_size=1, max_size=5),
    k=st.integers(1, 3),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_best_k_are_kept(tmp_path_factory: Any, values: list[float], k: int, mode: str) -> None:
    folder = tmp_path_factory.mktemp("best")
    saver, kept = scores_of(folder, values, save_top_k=k, mode=mode)
    worst = math.inf if mode == "min" else -math.inf
    comparable = [worst if math.isnan(value) else value for value in values]
    best = sorted(comparable, reverse=mode == "max")[:k]
    assert sorted(kept.values(), reverse=mode == "max") == pytest.approx(best)
    assert all(score == pytest.approx(comparable[epoch]) for epoch, score in kept.items())
    assert read(saver.best_model_path)["epoch"] == comparable.index(best[0])  # of equal values the first
    assert len(names(folder)) == len(kept)


def test_a_fixed_name_without_counter_keeps_the_best(tmp_path: Path) -> None:
    saver, kept = scores_of(
        tmp_path, [0.9, 0.6, 0.8, 0.65], save_top_k=2, filename="best", enable_version_counter=False
    )
    assert kept == {1: pytest.approx(0.6)}
    assert names(tmp_path) == ["best.ckpt"]
    assert float(saver.best_model_score or 0) == pytest.approx(0.6)


def test_names_that_exist_get_a_version(tmp_path: Path) -> None:
    for _ in range(2):
        trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path, save_last=True), max_epochs=1).fit(Scripted(), rows())
    assert names(tmp_path) == ["epoch=0-step=7-v1.ckpt", "epoch=0-step=7.ckpt", "last-v1.ckpt", "last.ckpt"]


def test_the_name_of_last_may_be_a_template(tmp_path: Path) -> None:
    class Saver(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "last-{epoch:02d}"

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.extra = 1

    saver = Saver(dirpath=tmp_path, save_last=True, save_top_k=0, auto_insert_metric_name=False)
    trainer(tmp_path, saver).fit(Scripted(), rows())
    assert names(tmp_path) == ["last-02.ckpt"]


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    for options in ({"fast_dev_run": True}, {"max_epochs": 0}):
        saver = ModelCheckpoint(dirpath=folder, save_last=True)
        trainer(tmp_path, saver, **options).fit(Scripted(), rows(), rows())
    assert not folder.exists()


def test_without_logger_files_lie_in_the_root_folder(tmp_path: Path) -> None:
    saver = ModelCheckpoint()
    trainer(tmp_path, saver, max_epochs=1).fit(Scripted(), rows())
    assert names(tmp_path / "checkpoints") == ["epoch=0-step=7.ckpt"]


def test_a_file_without_optimizers_is_smaller(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_weights_only=True)
    trainer(tmp_path, saver, max_epochs=1).fit(Scripted(), rows())
    assert "optimizer_states" not in read(saver.best_model_path)


# When.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_train_steps": 5}, [5, 10]),
        ({"every_n_train_steps": "6ba"}, [6, 12]),
        ({"every_n_train_steps": "20sp"}, [5, 10]),
        ({"every_n_train_steps": "30sp"}, [8]),
        ({"every_n_epochs": "2ep"}, [14]),
        ({"every_n_epochs": 2}, [14]),
        ({"every_n_train_steps": "1ep"}, [7, 14]),
        ({"train_time_interval": "1d"}, []),
        ({"train_time_interval": {"seconds": 0}}, list(range(1, 15))),
        ({"every_n_epochs": 0}, []),
    ],
)
def test_triggers(tmp_path: Path, options: dict[str, Any], expected: list[int]) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, **options)
    trainer(tmp_path, saver, max_epochs=2).fit(Scripted(), rows())
    assert sorted(read(path)["global_step"] for path in tmp_path.glob("*.ckpt")) == expected


def test_a_step_trigger_counts_optimizer_steps(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=2)
    trainer(tmp_path, saver, max_epochs=1, accumulate_grad_batches=2).fit(Scripted(), rows())
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 1, "every_n_train_steps": 1}, "more than one trigger"),
        ({"every_n_train_steps": -1}, "from 0"),
        ({"save_top_k": 2}, "save_top_k=2"),
        ({"save_top_k": -2, "monitor": "x"}, "save_top_k=-2"),
        ({"mode": "mim"}, "Did you mean `min`"),
        ({"every_n_train_steps": "5bx"}, "5bx"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ModelCheckpoint(**options)


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}, {"check_val_every_n_epoch": 2}])
def test_a_monitor_that_nobody_logs_is_an_error_with_the_names_there_are(tmp_path: Path, options: Any) -> None:
    fitted = trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path, monitor="val_los"), max_epochs=9, **options)
    with pytest.raises(MisconfigurationException, match=r"'val_los'.*Did you mean `val_loss`\?.*real_loss, train_loss"):
        fitted.fit(Scripted([0.1]), rows(), rows())
    assert fitted.current_epoch <= 1


def test_a_metric_of_a_later_validation_is_waited_for(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_top_k=-1)
    fitted = trainer(tmp_path, saver, max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    fitted.fit(Scripted([0.5, 0.4]), rows(), rows())
    assert names(tmp_path) == ["epoch=1-step=14.ckpt", "epoch=3-step=28.ckpt"]


def test_a_new_best_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        scores_of(tmp_path, [0.65, 0.7, 0.6])
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("saved")]
    assert lines == [
        "saved epoch=0-step=1.ckpt: val_loss 0.65 (best)",
        "saved epoch=2-step=3.ckpt: val_loss 0.6 (best, was 0.65)",
    ]


# State.


def test_a_continued_run_compares_with_what_was_kept(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    trainer(tmp_path, saver, max_epochs=2).fit(Scripted([0.5, 0.6]), rows(), rows())
    again = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    net = Scripted([0.5, 0.6, 0.55, 0.4])
    net.validations = 2
    trainer(tmp_path, again, max_epochs=4).fit(net, rows(), rows(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert names(tmp_path) == ["epoch=3-step=28.ckpt", "last.ckpt"]
    assert again.best_model_path.endswith("epoch=3-step=28.ckpt")


def test_a_run_continued_in_another_folder_leaves_the_old_one_alone(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    first = ModelCheckpoint(dirpath=old, monitor="val_loss", save_last=True)
    trainer(tmp_path, first, max_epochs=2).fit(Scripted([0.5, 0.6]), rows(), rows())
    before = names(old)
    again = ModelCheckpoint(dirpath=new, monitor="val_loss", save_last=True)
    net = Scripted([0.7, 0.4])
    trainer(tmp_path, again, max_epochs=4).fit(net, rows(), rows(), ckpt_path=first.last_model_path)
    assert names(old) == before
    assert names(new) == ["epoch=3-step=28.ckpt", "last.ckpt"]
    assert float(again.best_model_score or 0) == pytest.approx(0.4)


def test_the_file_resumed_from_is_never_deleted(tmp_path: Path) -> None:
    first = ModelCheckpoint(dirpath=tmp_path)
    trainer(tmp_path, first, max_epochs=1).fit(Scripted(), rows())
    trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path), max_epochs=3).fit(
        Scripted(), rows(), ckpt_path=first.best_model_path
    )
    assert names(tmp_path) == ["epoch=0-step=7.ckpt", "epoch=2-step=21.ckpt"]


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    state = {**saver.state_dict(), "best_k_models": {str(tmp_path / "x.ckpt"): torch.tensor(0.1)}}
    with pytest.warns(EngineWarning, match=r"x\.ckpt"):
        saver.load_state_dict(state)
    assert saver.best_k_models == {}


def test_several_with_other_settings_have_their_own_state(tmp_path: Path) -> None:
    savers = [
        ModelCheckpoint(dirpath=tmp_path / "a", monitor="val_loss"),
        ModelCheckpoint(dirpath=tmp_path / "b", every_n_train_steps=5),
        ModelCheckpoint(dirpath=tmp_path / "c", every_n_epochs=2),
    ]
    trainer(tmp_path, *savers, max_epochs=2).fit(Scripted([0.5, 0.6]), rows(), rows())
    assert [names(tmp_path / folder) for folder in "abc"] == [
        ["epoch=0-step=7.ckpt"], ["epoch=1-step=10.ckpt"], ["epoch=1-step=14.ckpt"],
    ]  # fmt: skip
    assert len({saver.state_key for saver in savers}) == 3
    assert all(isinstance(saver, Checkpoint) for saver in savers)


def test_files_written_in_the_background_are_the_same(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True, save_top_k=2)
    fitted = trainer(tmp_path, saver, max_epochs=3, plugins=[AsyncCheckpointIO()])
    fitted.fit(Scripted([0.5, 0.9, 0.8]), rows(), rows())
    assert names(tmp_path) == ["epoch=0-step=7.ckpt", "epoch=2-step=21.ckpt", "last.ckpt"]
    assert read(tmp_path / "last.ckpt")["global_step"] == 21


def test_the_kept_files_can_be_listed(tmp_path: Path) -> None:
    saver, _ = scores_of(tmp_path, [0.5, 0.4], save_top_k=2)
    saver.to_yaml()
    text = (tmp_path / "best_k_models.yaml").read_text().splitlines()
    assert [line.rpartition(": ")[2][:4] for line in text] == ["0.5", "0.40"] or len(text) == 2
    assert all(path in "\n".join(text) for path in saver.best_k_models)


# Several processes.


class TwoRanks(SingleDeviceStrategy):
    """Rank 0 of two, as far as callbacks can see."""

    world_size = 2

    def __init__(self) -> None:
        super().__init__("cpu")
        self.sent: list[Any] = []

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        self.sent.append(obj)
        return obj


def test_rank_zero_decides_names_and_values(tmp_path: Path) -> None:
    strategy = TwoRanks()
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    trainer(tmp_path, saver, strategy=strategy, max_epochs=1).fit(Scripted([0.5]), rows(), rows())
    assert (str(tmp_path / "epoch=0-step=7.ckpt"), "") in strategy.sent
    assert str(tmp_path / "last.ckpt") in strategy.sent
    assert any(isinstance(sent, dict) and float(sent.get("val_loss", 0)) == 0.5 for sent in strategy.sent)


@pytest.mark.parametrize("saved", [False, True])
def test_one_rank_alone_does_not_wait_for_the_others(tmp_path: Path, saved: bool) -> None:
    class Interrupted(Scripted):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.trainer.global_step == 8:
                signal.raise_signal(signal.SIGINT)

    net = Interrupted() if saved else Failing()
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=0, save_last=True, every_n_epochs=9)
    with contextlib.nullcontext() if saved else pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, saver, strategy=TwoRanks()).fit(net, rows())
    assert read(tmp_path / "last.ckpt")["global_step"] == (8 if saved else 7)
