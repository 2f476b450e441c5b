"""Post JSON to a webhook from a background thread, so that the network can neither slow nor stop a training.

Owns: the queue, the pace, the retries, the bounded end, and the secrecy of the address.
Does not own: what a message says (`slack_messages`) and when one is due (`slack`).

    post(message)      replace a waiting message of the same key, wake the thread, return at once
    thread:            while messages wait: send the oldest
                           2xx            delivered
                           429            wait as long as the server says, then send the newest state
                           5xx, network   wait 1, 2, 4 s; give the message up after `max_tries`
                           400, 413       drop this message, go on with the next
                           other, TLS     the webhook is gone or wrong: send nothing more
    close(timeout_s)   send what waits; return after `timeout_s` at the latest

What goes wrong is told once, as one line of the log. An answer that drips in for ever ends the sending too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from ..errors import MisconfigurationException, require

log = logging.getLogger(__name__)
_THREAD = "webhook-sender"
# Without TLS only to a host that is near: a name without a dot, or a number.
_ADDRESS = re.compile(r"(https://[^\s/]+|http://([\w-]+|[\d.]+|\[[\da-fA-F:.]+\])(:\d+)?)/\S+")
_JITTER = random.Random()  # its own: the global generator is the training's


class Secret:
    """A text that no `repr`, log line, traceback with locals or pickle shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text.strip()

    def reveal(self) -> str:
        """Return the text; do not put it into a variable, where a traceback with locals would show it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> tuple[type[Secret], tuple[()]]:
        return (Secret, ())


def read_address(environment: str) -> Secret | None:
    """Read a webhook's address from an environment variable, or from the file that `<environment>_FILE` names.

    Returns:
        The address; None when neither variable says anything.

    Raises:
        MisconfigurationException: The file cannot be read, or what was found is no https address (http is for hosts
            without a dot in their names); it is not shown.
    """
    path = "" if os.environ.get(environment) else os.environ.get(f"{environment}_FILE", "")
    problem = f"in {path or environment} does not read like https://host/path (it is not shown here)"
    try:
        secret = Secret(Path(path).read_text(encoding="utf-8-sig") if path else os.environ.get(environment, ""))
        if not path and not secret.reveal():
            return None
        if _ADDRESS.fullmatch(secret.reveal()):
            return secret
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read from the file that {environment}_FILE names ({type(error).__name__})"
    raise MisconfigurationException(
        f"The webhook's address {problem}. Copy it from the service's settings into the environment variable "
        f"{environment}, or into a text file that holds nothing else and whose path {environment}_FILE names."
    )


@dataclass(eq=False, repr=False)
class WebhookSender:
    """Deliver JSON messages in the background: in order, at a pace, of each kind the newest only.

    It lives in one process: in a forked child it starts empty, with a thread of its own.

    Args:
        address: Where to post.
        name: What the warning calls the service ("Slack").
        min_interval_s: Pause between two posts; Slack allows one message a second.
        timeouts_s: Longest waits for a connection and for an answer.
        max_tries: Tries per message before it is given up; waits that the server asks for do not count.
        max_pending: Waiting messages kept; beyond it the oldest goes.
        is_told: Whether the log has been told already that messages do not arrive.

    Raises:
        MissingExtraError: `requests` is not installed.
    """

    address: Secret
    name: str = "Webhook"
    min_interval_s: float = 1.1
    timeouts_s: tuple[float, float] = (5.0, 10.0)
    max_tries: int = 4
    max_pending: int = 20
    is_told: bool = False

    def __post_init__(self) -> None:
        # Imported by the caller's thread: an import in the sender's could hold its lock while a data loader forks.
        self._requests = require("requests", "slack", f"Sending messages to {self.name}")
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("urllib3"):
                logging.getLogger(name).addFilter(_is_not_ours)
        self._start_empty()

    def _start_empty(self) -> None:
        self._process = os.getpid()
        self._wake = threading.Condition()
        self._pending: dict[str, dict[str, Any]] = {}
        self._thread: threading.Thread | None = None
        self._not_before = 0.0
        self._deadline = math.inf  # set by `close`; in the past once the webhook turned out to be gone
        self._tries = 0
        self._sending_since = math.inf
        self.problem = ""  # what kept the latest message from arriving

    @property
    def is_gone(self) -> bool:
        """Whether sending to this address is of no use any more."""
        return self._deadline == -math.inf

    def post(self, payload: dict[str, Any], key: str) -> None:
        """Queue a message and return at once; it replaces a waiting message of the same `key`."""
        if self._process != os.getpid():
            self._start_empty()
        if time.monotonic() - self._sending_since > 3 * sum(self.timeouts_s):  # they bound a read, not an answer
            self._give_up("the server's answer has no end")
        with self._wake:
            if self._deadline < math.inf:
                return
            self._pending.pop(key, None)
            self._pending[key] = payload
            if len(self._pending) > self.max_pending:
                del self._pending[next(iter(self._pending))]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, timeout_s: float = 10.0) -> bool:
        """Send what waits, for at most `timeout_s`; return whether all went well. Nothing can be posted any more."""
        if self._process != os.getpid() or self._thread is None:
            return True
        with self._wake:
            self._deadline = min(self._deadline, time.monotonic() + timeout_s)
            self._wake.notify()
        if not self.is_gone:
            self._thread.join(timeout_s)
        if self._pending:
            reason = f": {self.problem}" if self.problem else ""
            self._complain(f"{len(self._pending)} could not be sent within {timeout_s:g} s at the end{reason}")
        return not self.problem

    def _run(self) -> None:
        while (work := self._next()) is not None:
            key, payload = work
            self._sending_since = time.monotonic()
            wait_s = self._send(payload)
            self._sending_since = math.inf
            with self._wake:
                self._not_before = time.monotonic() + max(wait_s or 0.0, self.min_interval_s)
                if wait_s is None:
                    self._tries = 0
                if wait_s is None and self._pending.get(key) is payload:  # else a newer state is sent in its turn
                    del self._pending[key]

    def _next(self) -> tuple[str, dict[str, Any]] | None:
        """Wait until a message may be sent and return it; None when no more will be."""
        with self._wake:
            while True:
                now = time.monotonic()
                ends_before = self._deadline < max(now, self._not_before)
                if ends_before or (self._deadline < math.inf and not self._pending):
                    return None
                if self._pending and now >= self._not_before:
                    return next(iter(self._pending.items()))
                self._wake.wait(self._not_before - now if self._pending else None)

    def _send(self, payload: dict[str, Any]) -> float | None:
        """Post once; return the seconds until the next try, None when this message is done with."""
        left = max(self._deadline - time.monotonic(), 0.1)
        errors = self._requests.exceptions
        try:
            with self._requests.post(
                self.address.reveal(),
                data=json.dumps(payload).replace(self.address.reveal(), "***"),
                headers={"Content-Type": "application/json", "Connection": "close"},
                timeout=tuple(min(limit, left) for limit in self.timeouts_s),
                allow_redirects=False,  # following one would hand the message to someone else
                stream=True,  # the status is enough: a body that drips must not hold the thread
            ) as response:
                return self._judge(response)
        except (errors.ConnectionError, errors.Timeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                return self._retry(f"{type(error).__name__}; check the network and the proxy (HTTPS_PROXY)")
            return self._give_up("the server's certificate is not valid; check REQUESTS_CA_BUNDLE and the proxy")
        except Exception as error:  # told by its type alone: its text may hold the address
            return self._give_up(f"{type(error).__name__} while sending")

    def _judge(self, response: Any) -> float | None:
        """Act on the status of an answer; return as `_send` does."""
        status = response.status_code
        if 200 <= status < 300:
            self.problem = ""
            return None
        if status == 429:
            self.problem = "the server asks to wait (429)"  # no complaint: it is obeyed, and the newest state is sent
            return _retry_after(response.headers.get("Retry-After", ""))
        problem = f"the server answers {status}{_reason(response, self.address)}"
        if status >= 500 or status == 408:
            return self._retry(problem)
        if status not in (400, 413):
            is_between = status < 400 or status == 407  # a login page, a proxy
            remedy = "check the address and the proxy" if is_between else "make a new webhook and set its address"
            return self._give_up(f"{problem}; {remedy}")
        self._complain(f"{problem} to one of them")
        return None

    def _retry(self, problem: str) -> float | None:
        self._complain(problem)
        self._tries += 1
        return None if self._tries >= self.max_tries else 2.0 ** (self._tries - 1) * _JITTER.uniform(0.75, 1.25)

    def _give_up(self, problem: str) -> float | None:
        self._complain(problem)
        with self._wake:
            self._deadline = -math.inf
            self._pending.clear()
        return None

    def _complain(self, problem: str) -> None:
        self.problem = problem
        if not self.is_told:
            self.is_told = True
            log.warning("%s messages do not arrive: %s. The run goes on without them.", self.name, problem)


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, within 1 and 300; 5 when it is no number and no date."""
    seconds = 5.0
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value):
        seconds = float(value)
    elif value.endswith("GMT"):
        with suppress(ValueError, OverflowError):
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 1.0), 300.0)


def _reason(response: Any, address: Secret) -> str:
    """Return ` (no_service)` when the body is one plain word as Slack's are, never what echoes the address."""
    until = time.monotonic() + 2.0
    bytes_ = takewhile(lambda _: time.monotonic() < until, islice(response.iter_content(1), 60))
    text = b"".join(bytes_).decode("ascii", "replace").strip()
    return f" ({text})" if re.fullmatch("[a-z_]{3,60}", text) and text not in address.reveal() else ""


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Keep urllib3's lines of our thread out of the logs: they hold the address, also the warning of a bad header."""
    return threading.current_thread().name != _THREAD
