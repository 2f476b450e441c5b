"""Report the progress of a run to Slack through an incoming webhook.

Owns: when a message is due, and what is remembered between two of them.
Does not own: the words (`slack_messages`), the facts (`slack_facts`), the way to the server (`webhook`).

    Trainer(callbacks=[SlackProgress()])                    # and SLACK_WEBHOOK_URL in the environment
    Trainer(callbacks=[SlackProgress("1h", language="ja", mention="here")])

    fit                     started ─▶ progress, new best, … ─▶ finished | failed | interrupted
    validate test predict                                       finished | failed | interrupted
    a thread of its own     stalled
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from ..durations import Duration
from ..errors import EngineError, MisconfigurationException, SIGTERMException
from ..hooks import Callback
from . import slack_facts as facts
from .slack_messages import LANGUAGES, Message, Metric, Status, block_kit, compose, speaker
from .webhook import WebhookSender, read_address

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

log = logging.getLogger(__name__)
P = ParamSpec("P")
SWEEP = "PROGRESS_MESSAGES_SWEEP"  # in the environment while a sweep runs: its trials, also in processes, keep quiet


def _harmless(hook: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Run a hook where there is somebody to send to; a mistake in it ends the messages, not the training."""

    @wraps(hook)
    def guarded(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._sender is not None:
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                self._sender = None
                reason = f"{type(error).__name__} in `{hook.__name__}`: {error}"
                log.warning("No more %s messages: %s", self.service, reason)

    return guarded


@dataclass
class _Story:
    """What a resumed run goes on telling."""

    best: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0  # before this process began


class SlackProgress(Callback):
    """Post the progress of a run to Slack; rank 0 only, never in the way of the training.

    The webhook's address is read from SLACK_WEBHOOK_URL, or from a file (a mounted secret) that SLACK_WEBHOOK_URL_FILE
    names; without one nothing is sent. It is kept out of configuration, logs, checkpoints and pickles. A fit that ends
    within `min_gap_s` sends two messages.

    Args:
        every: How often progress is told: "10%", "2ep", "500ba", "1e6sp", "30m", or a number of epochs.
        monitor: Metric whose best is told and whose curve is drawn. None: that of the checkpoints or early stopping.
        mode: "min" or "max" for it. None: as there, else by its name ("acc", "f1", … is "max").
        metrics: Further metrics to show. None: the first five that were logged.
        language: "en" or "ja".
        mention: Whom to call when a run fails; None: nobody. "here", "channel", "everyone", a user's or a group's id.
        min_gap_s: Pause between two messages about progress; what happens within is told in the next. A new best has
            a message of its own every ten of these pauses at most.
        stalled_after_s: Time without a step after which that is told; None: never.
        project: Name at the head of the messages. None: the package's.
        resume_hint: What to type to go on after an interruption.
        exit_limit_s: The longest that sending may delay the end of a run, in seconds; after SIGTERM 3 at most, because
            what runs the job kills it soon.

    Raises:
        MisconfigurationException: An argument that cannot be understood.
    """

    runs_last = True
    service = "Slack"
    environment = "SLACK_WEBHOOK_URL"
    min_interval_s = 1.1  # Slack takes one message a second
    mentions: tuple[tuple[str, str], ...] = (
        (r"(?:<!|@)?(here|channel|everyone)>?", "<!{}>"),
        (r"(?:<@|@)?([UW][A-Z0-9]{5,})>?", "<@{}>"),
        (r"(?:<!subteam\^)?(S[A-Z0-9]{5,})>?", "<!subteam^{}>"),
    )

    def __init__(
        self,
        every: str | int = "10%",
        *,
        monitor: str | None = None,
        mode: str | None = None,
        metrics: list[str] | None = None,
        language: str = "en",
        mention: str | None = None,
        min_gap_s: float = 60.0,
        stalled_after_s: float | None = 1800.0,
        project: str | None = None,
        resume_hint: str = 'trainer.fit(..., ckpt_path="last")',
        exit_limit_s: float = 10.0,
    ) -> None:
        self._unit, self._period = _cadence(every)
        self.monitor = monitor
        self.mode = mode
        self.metrics = metrics
        self.language = language
        found = ((shape, re.fullmatch(pattern, mention or "")) for pattern, shape in self.mentions)
        self.mention = next((shape.format(match[1]) for shape, match in found if match), "")
        self.min_gap_s = min_gap_s
        self.stalled_after_s = stalled_after_s or math.inf
        self.project = project or __name__.partition(".")[0]
        self.resume_hint = resume_hint
        self.exit_limit_s = exit_limit_s
        is_mention = bool(self.mention) or not mention
        self._refuse("mode", mode, "'min' and 'max'", mode in (None, "min", "max"))
        self._refuse("metrics", metrics, "a list of names", not isinstance(metrics, str))
        self._refuse("language", language, "'en' and 'ja'", language in LANGUAGES)
        self._refuse("mention", mention, "'here', 'everyone', a user's or a group's id", is_mention)
        self._refuse("exit_limit_s", exit_limit_s, "seconds from 0 to 3600", 0 <= exit_limit_s <= 3600)
        self._refuse("stalled_after_s", stalled_after_s, "None and seconds above 0", self.stalled_after_s > 0)
        self._sender: WebhookSender | None = None
        self._finished: threading.Event | None = None
        self._last: WebhookSender | None = None  # of the run before, closed
        self._told = ""  # what is wrong with the address
        self._story = _Story()
        self._begin(Status(self.project))

    def _begin(self, known: Status) -> None:
        self._known = known
        self._started_at = self._beat = time.monotonic()
        self._patience_s = self.exit_limit_s
        self._values: dict[str, float] = {}
        self._lr: float | None = None
        self._previous: dict[str, float] = {}
        self._recorded_at: int | None = None
        self._is_best = False
        self._last_best = self._last_message = self._next_look = -math.inf
        self._next_position = 0.0
        self._start_step = 0

    def payload(self, message: Message) -> dict[str, Any]:
        """Return what is posted for a message; another service overrides this."""
        return block_kit(message)

    def open_sender(self) -> WebhookSender | None:
        """Return a sender to the address that environment or file name; None without one, which the log tells.

        None as well for the address that the run before found to be gone. A `fit` and the `test` after it warn once.
        """
        try:
            if address := read_address(self.environment):
                last = self._last if self._last and self._last.address == address else None
                is_told, is_gone = (last.is_told, last.is_gone) if last else (False, False)
                return None if is_gone else WebhookSender(address, self.service, self.min_interval_s, is_told=is_told)
            log.info("%s is not set: no %s messages.", self.environment, self.service)
        except EngineError as error:
            if str(error) != self._told:
                log.warning("No %s messages. %s", self.service, error)
            self._told = str(error)
        return None

    @contextmanager
    def sweep(self, name: str, mode: str = "min", metric: str = "") -> Iterator[list[tuple[str, float | None]]]:
        """Keep the runs inside quiet, and send one summary of them at the end. Call it on rank 0 only.

        Args:
            name: Name of the sweep.
            mode: Whether a small ("min") or a large ("max") value is good.
            metric: What the values are.

        Yields:
            A list to append each trial to: what was tried, and its value (None: it failed).

        Example:
            with SlackProgress().sweep("learning rates", metric="val_loss") as trials:
                for lr in (1e-3, 1e-2):
                    trials.append((f"lr={lr}", train(lr)))
        """
        trials: list[tuple[str, float | None]] = []
        start, is_outermost = time.monotonic(), SWEEP not in os.environ
        os.environ[SWEEP] = "1"
        try:
            yield trials
        finally:
            if is_outermost:
                del os.environ[SWEEP]
                self._sender = self.open_sender()
                known = Status(self.project, name, metric=metric, elapsed_s=time.monotonic() - start)
                self._summarise(known, trials, mode)
                self._close()

    @_harmless
    def _summarise(self, known: Status, trials: list[tuple[str, float | None]], mode: str) -> None:
        good = [(what, value) for what, value in trials if value is not None and math.isfinite(value)]
        good.sort(key=lambda trial: trial[1], reverse=mode == "max")
        self._post("swept", replace(known, trials=tuple(good), failures=len(trials) - len(good)))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the way to the server on rank 0. Collective: every rank reads the log directory."""
        self._open(trainer, trainer.log_dir)

    def _open(self, trainer: Trainer, log_dir: str) -> None:
        self._close()
        if trainer.is_global_zero and not trainer.fast_dev_run and SWEEP not in os.environ:
            self._sender = self.open_sender()
        self._introduce(trainer, log_dir)

    @_harmless
    def _introduce(self, trainer: Trainer, log_dir: str) -> None:
        self._begin(facts.describe(trainer, self.project, log_dir))
        self._finished = threading.Event()
        if math.isfinite(self.stalled_after_s):
            arguments = (trainer, threading.get_ident(), self._finished)
            threading.Thread(target=self._watch, args=arguments, name="stall-watch", daemon=True).start()

    @_harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that the fit starts or goes on; everything is restored and counted by now."""
        if trainer.global_step == 0:
            self._story = _Story()
        self._known = facts.plan(trainer, self._known)
        self._started_at = self._beat = time.monotonic()
        self._start_step = trainer.global_step
        self._plan_next(trainer, trainer.current_epoch)
        self._tell("resumed" if trainer.global_step else "started", trainer, key="start")

    # At the start of a batch: a callback at its end has the loop detach and wrap the outputs, 5 µs a step.
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that the run lives; once a second, see whether a message is due."""
        self._beat = now = time.monotonic()
        if now >= self._next_look:
            self._look(trainer, trainer.current_epoch)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note that the run lives."""
        self._beat = time.monotonic()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    @_harmless
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics; of a validation that is a run of its own, tell the result."""
        if self._known.stage == "validate":
            self.on_fit_end(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._record(trainer)

    @_harmless
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics; see whether a message is due."""
        self._record(trainer)
        self._look(trainer, trainer.current_epoch + 1)

    @_harmless
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the result."""
        self._read(trainer)
        is_early = trainer.should_stop and trainer.global_step < (self._known.max_steps or math.inf)
        reason = speaker(self.language)("early") if is_early else ""
        self._tell("finished", trainer, reason=reason, epoch=trainer.current_epoch)  # by now the number of those done

    on_test_end = on_predict_end = on_fit_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell why the run ended: from outside (Ctrl-C, SIGTERM) or by an error. Reads nothing from the device."""
        if self._sender is None:  # it failed before `setup`, in preparing the data
            self._open(trainer, trainer.default_root_dir)
        self._tell_end(trainer, exception)
        if trainer.parity:  # no `teardown` follows there
            self._close()

    @_harmless
    def _tell_end(self, trainer: Trainer, exception: BaseException) -> None:
        reason = f"{type(exception).__name__}: {exception}".removesuffix(": ")
        if isinstance(exception, SIGTERMException) or trainer.received_sigterm:
            self._patience_s = min(self.exit_limit_s, 3.0)
            self._tell("preempted", trainer, reason="SIGTERM", resume=self.resume_hint)
        elif not isinstance(exception, Exception):
            reason = "Ctrl-C" if isinstance(exception, KeyboardInterrupt) else reason
            self._tell("interrupted", trainer, reason=reason, resume=self.resume_hint)
        else:
            self._tell("failed", trainer, reason=reason, traceback=facts.trace(traceback.format_exception(exception)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send what still waits, for at most `exit_limit_s`."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the story so far: a resumed run tells it on."""
        return asdict(replace(self._story, elapsed_s=self._elapsed_s()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the story of the run that is resumed; what another version of this class wrote is left out."""
        self._story = _Story(**{name: state_dict[name] for name in asdict(_Story()) if name in state_dict})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sender": None, "_last": None, "_finished": None}  # another process opens its own

    @_harmless
    def _watch(self, trainer: Trainer, thread: int, finished: threading.Event) -> None:
        """Tell once per silence that no step is done. Runs in a thread of its own; touches no tensor."""
        told = -math.inf
        while not finished.wait(min(self.stalled_after_s / 4, 20.0)):
            beat = self._beat
            silence_s = time.monotonic() - beat
            if silence_s >= self.stalled_after_s and beat != told:
                told = beat
                stack = facts.trace(traceback.format_stack(sys._current_frames().get(thread))[-6:])
                self._tell("stalled", trainer, key="stalled", silence_s=silence_s, traceback=stack)

    def _record(self, trainer: Trainer) -> None:
        """Note the metrics of an epoch or a validation, and whether the monitored one is the best so far."""
        self._read(trainer)
        story, first = self._story, next(iter(self._values), "")
        for name, value in self._values.items():
            best = story.best.get(name, math.nan)
            mode = self._mode if name == first and self._mode else facts.guess_mode(name)
            if math.isnan(best) or (value > best if mode == "max" else value < best):
                story.best[name] = value
                self._is_best |= name == first and not math.isnan(best)
        computed_at = trainer.metric_steps.get(first)
        if first and computed_at != self._recorded_at:
            self._recorded_at = computed_at
            story.history = [*story.history[-999:], self._values[first]]

    def _read(self, trainer: Trainer) -> None:
        """Read the metrics to show, the monitored one first."""
        monitor, self._mode = (self.monitor, self.mode) if self.monitor else facts.watched(trainer)
        is_shown = re.compile(r"(?!lr-)(?!.*_step$)")  # the learning rate has a line of its own
        known = [name for name in trainer.callback_metrics if name != monitor and is_shown.match(name)]
        self._lr = facts.learning_rate(trainer)
        others = self.metrics or sorted(known, key=lambda name: (not name.startswith("val"), "loss" not in name))[:5]
        self._values = facts.read_metrics(trainer, [monitor, *others] if monitor else others)

    @_harmless
    def _look(self, trainer: Trainer, epochs: int) -> None:
        """Send a message about progress if one is due by now, the pause since the last one included."""
        now = time.monotonic()
        self._next_look = now + 1.0
        is_over = self._known.max_steps is not None and trainer.global_step >= self._known.max_steps
        is_best = self._is_best and now - self._last_best >= 10 * self.min_gap_s
        is_due = is_best or self._position(trainer, epochs) >= self._next_position
        if is_over or not is_due or now - self._last_message < self.min_gap_s:
            return
        self._plan_next(trainer, epochs)
        self._read(trainer)
        self._tell("new_best" if is_best else "progress", trainer)
        self._is_best = False
        self._last_best = now if is_best else self._last_best

    def _position(self, trainer: Trainer, epochs: int) -> float:
        steps = self._known.max_steps
        percent = 100 * trainer.global_step / steps if steps else self._elapsed_s() / 180  # no end known: 1 % is 3 min
        positions = {"epochs": epochs, "seconds": self._elapsed_s(), "percent": percent}
        return {**positions, "batches": trainer.total_batches, "samples": trainer.samples_seen}[self._unit]

    def _plan_next(self, trainer: Trainer, epochs: int) -> None:
        done = math.floor(self._position(trainer, epochs) / self._period + 1e-9)
        self._next_position = (done + 1) * self._period

    def _elapsed_s(self) -> float:
        return self._story.elapsed_s + time.monotonic() - self._started_at

    def _status(self, trainer: Trainer) -> Status:
        """Return what is known now, from plain numbers only: after an error the device may not answer."""
        now = time.monotonic()
        known = self._known
        is_fit = known.stage == "fit"
        best = self._story.best if is_fit else {}
        step, epoch = trainer.global_step, trainer.current_epoch + 1
        done, left = step - self._start_step, (known.max_steps or 0) - step
        return replace(
            known,
            now=datetime.now(UTC),
            epoch=min(epoch, known.max_epochs or epoch),
            step=step,
            elapsed_s=self._elapsed_s() if is_fit else now - self._started_at,
            left_s=left * (now - self._started_at) / done if done > 0 and left > 0 else None,
            metrics=tuple(Metric(n, v, self._previous.get(n), best.get(n)) for n, v in self._values.items()),
            history=tuple(self._story.history) if is_fit else (),
            lr=self._lr if is_fit else None,
            checkpoint=facts.checkpoint(trainer),
            link=facts.run_link(trainer),
        )

    def _tell(self, kind: str, trainer: Trainer, key: str = "progress", **more: Any) -> None:
        self._post(kind, replace(self._status(trainer), **more), key)
        self._previous = dict(self._values)

    def _post(self, kind: str, status: Status, key: str = "progress") -> None:
        """Queue a message; one of the same key that still waits gives way to it."""
        self._last_message = time.monotonic()
        if self._sender is not None:
            self._sender.post(self.payload(compose(kind, status, self.language, self.mention)), key)

    def _close(self) -> None:
        if self._finished is not None:
            self._finished.set()
        if self._sender is not None:
            # Where nothing arrived at the end of the last run, this one's end is not held up as long again.
            is_down = self._last is not None and bool(self._last.problem)
            self._sender.close(min(self._patience_s, 2.0) if is_down else self._patience_s)
            self._last = self._sender
        self._sender = self._finished = None

    def _refuse(self, name: str, value: Any, accepted: str, is_fine: bool) -> None:
        if not is_fine:
            raise MisconfigurationException(f"`{type(self).__name__}({name}={value!r})`: accepted are {accepted}.")


def _cadence(every: str | int) -> tuple[str, float]:
    """Return unit and amount: ("percent", 10), ("epochs", 1), ("batches", 500), ("samples", 1e6), ("seconds", 60)."""
    percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(every))
    amounts = {"percent": float(percent[1])} if percent else {}
    if not percent:
        with suppress(MisconfigurationException):
            amounts = asdict(Duration.parse(f"{every}ep" if isinstance(every, int) else str(every)))
    unit, amount = next(((unit, amount) for unit, amount in amounts.items() if amount), ("", 0))
    if not amount:
        raise MisconfigurationException(
            f"`every={every!r}` is no pause between messages. Write '10%', '2ep', '500ba', '1e6sp', '30m' or '1h30m'."
        )
    return unit, float(amount)
