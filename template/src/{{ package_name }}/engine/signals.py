"""Being asked to stop from outside.

Owns: which signals are watched during `fit`, what they become, and putting a Slurm job back into the queue. Does not
own: saving (callbacks do, in `on_exception`).

A signal never interrupts a step: it is noted, and acted on after the batch. A second Ctrl-C leaves at once, and saves
nothing. Exit codes: 143 after SIGTERM, 138 after SIGUSR1; Ctrl-C returns to the caller of `fit`, and 130 is the code
that a shell expects of a program that ends then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .distributed import log, rank_zero_info
from .errors import SIGTERMException

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}
_INTERACTIVE = ("bash", "interactive", "sh", "zsh")  # names that Slurm gives to jobs somebody sits at


@contextlib.contextmanager
def handled_by(handler: Callable[..., Any], *numbers: int) -> Iterator[None]:
    """Have signals, SIGUSR1 among them, handled by a function inside; does nothing outside of the main thread."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        own: Any = getattr(signal, "SIGUSR1", None)  # not on Windows; a handler of the user's own is left alone
        is_free = own is not None and signal.getsignal(own) in (signal.SIG_DFL, None)
        before = {number: signal.signal(number, handler) for number in (*numbers, *([own] if is_free else []))}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


class SignalWatch:
    """Notes signals during `watching`.

    Attributes:
        received: Name of the signal that arrived first, or None.
        is_agreed: Whether it may be followed; with several processes, once all of them know of it.
        is_leaving: It is being followed: the run ends between two batches, on every process.
        is_urgent: Ctrl-C came twice: nothing is saved any more.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.is_agreed = True
        self.is_leaving = self.is_urgent = False

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which signals are noted."""
        return handled_by(self._note, signal.SIGINT, signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self.received == "SIGINT":
            self.is_urgent = True
            raise KeyboardInterrupt
        if self.received is None:
            self.received = name
            more = " Press Ctrl-C again to leave at once." if name == "SIGINT" else ""
            rank_zero_info(f"{name} received: finishing the batch, then saving and leaving.{more}")

    def act(self) -> None:
        """Leave the run, when a signal arrived.

        Raises:
            KeyboardInterrupt: For Ctrl-C.
            SIGTERMException: For SIGTERM and SIGUSR1, with the exit code 128 + the signal's number.
        """
        if self.received is None or not self.is_agreed or self.is_leaving:
            return
        self.is_leaving = True
        if self.received == "SIGINT":
            raise KeyboardInterrupt
        raise SIGTERMException(EXIT_CODES[self.received])

    @property
    def asks_to_requeue(self) -> bool:
        """Whether Slurm said, by SIGUSR1, that the time of this batch job is nearly over."""
        is_job = "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE
        return is_job and self.received == "SIGUSR1"


def requeue() -> None:
    """Put this Slurm job back into its queue; Slurm then ends it, and starts it again when there is room."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("Slurm job %s could not be put back into the queue: %s. Submit it again.", job, error)
    else:
        log.info("Slurm job %s is back in the queue.", job)
