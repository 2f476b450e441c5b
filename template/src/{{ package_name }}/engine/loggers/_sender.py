"""Entries on their way to a tracking server: one thread puts them on disk, another sends them, training goes on.

Owns: the queue, the retries and the words when the server or the disk fails. Does not own: the file (`_spool`), what an
entry is, nor how it is sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..distributed import log
from ._spool import Spool

LONGEST_PAUSE_S = 60.0
MOST_IN_MEMORY = 200_000  # entries, when the disk takes none and the server none either
LARGEST_BYTES = 50_000_000  # of a file whose entries have all arrived; then it is begun anew


class BackgroundSender:
    """Send entries in order, many at once, from daemon threads that start with the first entry.

    Args:
        send: Sends a list of entries or raises; after an error the whole list is sent again, so it must not matter
            whether an entry arrives twice. Errors that will not pass must be handled inside.
        open_spool: Makes the file that keeps the entries until they have arrived; called by a thread.
        name: The receiver, as it is called in messages.
        interval_s: Seconds between two sendings; after an error the pause doubles, up to a minute.
        troubles: What ails the senders to one receiver, shared by them so that it is said once.
    """

    def __init__(
        self,
        send: Callable[[list[Any]], None],
        open_spool: Callable[[], Spool],
        name: str,
        interval_s: float = 1.0,
        troubles: dict[BackgroundSender, str] | None = None,
    ) -> None:
        self._send, self._open_spool, self._name, self._interval_s = send, open_spool, name, interval_s
        self._troubles = {} if troubles is None else troubles
        self._queue: list[Any] = []  # on no disk yet
        self._held: list[Any] = []  # what the disk did not take
        self._spool: Spool | None = None
        self._changed = threading.Condition()
        self._sending, self._disk = threading.Lock(), threading.Lock()
        self._keeping = False
        self._started = False
        self._wanted = {self._keep: False, self._transmit: False}
        self._failures = self._refusals = self._dropped = 0

    def put(self, entry: Any) -> None:
        """Queue one entry; returns at once."""
        with self._changed:
            if len(self._queue) + len(self._held) >= MOST_IN_MEMORY:
                self._drop()
                return
            self._queue.append(entry)
            if not self._started:
                self._started = True
                self._wanted[self._keep] = True
                for work in self._wanted:
                    threading.Thread(target=self._repeat, args=[work], name=f"to {self._name}", daemon=True).start()

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    @property
    def is_done(self) -> bool:
        """Whether nothing waits anywhere."""
        return not (self._queue or self._keeping or self._held) and (self._spool is None or self._spool.is_sent)

    def keep(self, timeout_s: float) -> bool:
        """Wait until what was queued is on disk; return False after `timeout_s` seconds or if the disk refuses it."""
        return self._wait(lambda: not (self._queue or self._keeping), timeout_s)

    def flush(self, timeout_s: float) -> bool:
        """Send now and wait until all is sent; return False after `timeout_s` seconds or a failed attempt."""
        failures = self._failures
        return self._wait(lambda: self.is_done or self._failures > failures, timeout_s) and self.is_done

    def close(self, timeout_s: float) -> str:
        """Send what is left, for at most `timeout_s` seconds; return the folder where the rest is kept, "" for none.

        May be used again.
        """
        self.flush(timeout_s)
        self._keep()  # a failed attempt may have ended the waiting before the thread put the last entries on disk
        with self._disk:
            self._keep_held()
            if self.is_done and self._spool is not None:
                with self._sending:
                    self._spool.close()
                    self._spool = None
        if self._held:
            log.warning("%d entries for %s are on no disk and not sent.", len(self._held), self._name)
        if self.is_done:
            return ""
        return "memory" if self._spool is None else str(self._spool.path.parent)

    def _drop(self) -> None:
        self._dropped += 1
        if self._dropped == 1:
            log.warning(
                "%d entries for %s wait in memory; neither disk nor receiver takes them. What is logged from here on "
                "is not kept for it.", MOST_IN_MEMORY, self._name,
            )  # fmt: skip

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        with self._changed:
            while not done() and time.monotonic() < end:
                self._wanted = dict.fromkeys(self._wanted, True)
                self._changed.notify_all()
                self._changed.wait(0.05)
            return done()

    def _repeat(self, work: Callable[[], None]) -> None:
        while True:
            with self._changed:
                failures = self._failures if work == self._transmit else 0
                pause = min(self._interval_s * 2 ** min(failures, 10), LONGEST_PAUSE_S)
                self._changed.wait_for(lambda: self._wanted[work], timeout=pause)
                self._wanted[work] = False
            work()
            with self._changed:
                self._changed.notify_all()

    def _keep(self) -> None:
        """Put what is queued on disk; what the disk refuses is sent from memory, or put there when there is room."""
        with self._disk:
            with self._changed:
                entries, self._queue = self._queue, []
                self._keeping = bool(entries)
            if not entries:
                self._keep_held()
                return
            try:
                self._begin_anew_if_large()
                self._append(entries)
            except OSError as error:
                if not self._refusals:
                    log.warning("What is logged for %s is kept in memory only: %s.", self._name, error)
                self._refusals += 1
                self._held += entries
            with self._changed:
                self._keeping = False
                self._wanted[self._transmit] = self._wanted[self._transmit] or not self._failures

    def _append(self, entries: list[Any]) -> None:
        self._spool = self._spool or self._open_spool()
        self._spool.append(entries)

    def _begin_anew_if_large(self) -> None:
        spool = self._spool
        # The lock may be held a moment longer by who has just sent the last entry.
        if spool and spool.size_bytes > LARGEST_BYTES and spool.is_sent and self._sending.acquire(timeout=0.1):
            try:
                self._spool = None
                spool.close()
            finally:
                self._sending.release()

    def _keep_held(self) -> None:
        """Put on disk what it had refused, as far as it takes it now; nothing while those entries are being sent."""
        while self._held and self._sending.acquire(timeout=0.1):  # an attempt that fails at once is waited for
            try:
                self._append(self._held[:1000])
                del self._held[:1000]
            except OSError:
                return
            finally:
                self._sending.release()

    def _transmit(self) -> None:
        with self._sending:
            while not self.is_done and self._attempt():
                pass

    def _attempt(self) -> bool:
        """Send some of what waits, the file first; return whether it is worth while to go on."""
        spool = self._spool
        held: list[Any] = []
        try:
            entries, position = spool.waiting() if spool is not None else ([], 0)
            if spool is None or spool.is_sent:
                entries = held = self._held[:1000]
                if not held:
                    return False
            self._send(entries)
        except Exception as error:  # whatever a client raises, training goes on
            self._failures += 1
            log.debug("sending to %s failed", self._name, exc_info=True)
            self._say(reason_of(error), spool.path.parent if spool else "memory")
            return False
        if self._failures and self._troubles.pop(self, "") and not self._troubles:
            log.warning("%s takes it again; what waited is sent.", self._name)
        self._failures = 0
        if spool is not None and not held:
            spool.mark_sent(position)
        del self._held[: len(held)]
        return True

    def _say(self, reason: str, place: Path | str) -> None:
        """Warn of a failure, once until it is over, and once for all senders that it hits."""
        is_news = self not in self._troubles and reason not in self._troubles.values()
        self._troubles[self] = reason
        if is_news:
            log.warning(
                "%s takes nothing now (%s). Training goes on; what is logged is kept in %s and sent when it takes it "
                "again.", self._name, reason, place,
            )  # fmt: skip


def reason_of(error: BaseException) -> str:
    """Return the first line of what lies at the bottom of an error: clients wrap it several times."""
    below = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if below is not None:
        return reason_of(below)
    return next(iter(str(error).splitlines()), "")[:500] or type(error).__name__
