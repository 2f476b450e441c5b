"""The exceptions and warnings of the engine, and the words they share.

Owns: what can be raised. Does not own: when it is raised; that is decided where the mistake can first be known.

    EngineError
    ├── MisconfigurationException (also ValueError)   settings that cannot work together, or do not exist
    ├── CheckpointError (also RuntimeError)           a file that cannot be written, read or trusted
    ├── NonFiniteLossError (also FloatingPointError)  a loss that is nan or infinite
    └── MissingExtraError (also ImportError)          an optional dependency that is not installed
    SystemExit
    └── SIGTERMException                              the machine is being taken away
"""

from __future__ import annotations

import contextlib
import difflib
import dis
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

_RAISE = dis.opmap["RAISE_VARARGS"]
_NOT_THE_USERS = (f"{Path(__file__).parent}/", contextlib.__file__, "torch/nn/modules/", "torch/optim/")


class EngineError(Exception):
    """Base of every error that the engine raises on its own account."""


class MisconfigurationException(EngineError, ValueError):
    """A setting, an argument or a hook that cannot work as it stands."""


class CheckpointError(EngineError, RuntimeError):
    """A checkpoint that could not be written, read or trusted.

    Attributes:
        may_pass: It came from the file system (a full disk), so that a later save may succeed.
        path: The file that could not be written; "" for other errors.
    """

    may_pass = False
    path = ""


class NonFiniteLossError(EngineError, FloatingPointError):
    """The loss is nan or infinite; training on would spoil the weights."""


class MissingExtraError(EngineError, ImportError):
    """An optional dependency is used but not installed."""


class SIGTERMException(SystemExit):
    """The process was asked to end (SIGTERM); raised after the batch in progress."""


class _TunerExitException(Exception):
    """A tuner callback ends the run early on purpose."""


class EngineWarning(UserWarning):
    """Base of the engine's warnings: `warnings.filterwarnings("ignore", category=EngineWarning)` silences them all."""


def closest(name: str, options: Iterable[str]) -> str | None:
    """Return the option most like `name`, or None when nothing comes near."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean `x`?"` for the option most like `name`, or an empty string."""
    match = closest(name, options)
    return f" Did you mean `{match}`?" if match else ""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Dotted name to import.
        extra: Name of the project's extra that installs it.
        purpose: What needs it, as the subject of a sentence ("`MLFlowLogger`").

    Raises:
        MissingExtraError: The module is not installed; the text names the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        distribution = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs `{distribution}`, which is not installed ({error}). "
            f"Install the extra `{extra}` of this project: `{pip_install()} -e '.[{extra}]'`."
        ) from error


def pip_install() -> str:
    """Return the command that installs into this environment: one that uv has made has no pip of its own."""
    return "pip install" if importlib.util.find_spec("pip") else "uv pip install"


class EndsAtCaller(contextlib.ContextDecorator):
    """Lets the traceback of an error that the engine raises end with the user's own line, the one to look at.

    Errors of the user's code and of libraries, and faults of the engine itself, keep their whole traceback; so does
    everything under a debugger.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        last = users = None
        while traceback is not None:
            last = traceback
            users = last if _is_users(last.tb_frame) else users
            traceback = last.tb_next
        if last is None or _is_users(last.tb_frame) or last.tb_frame.f_code.co_code[last.tb_lasti] != _RAISE:
            return
        if users is not None:
            users.tb_next = None
            return
        caller: FrameType | None = sys._getframe(1)
        while caller is not None and not _is_users(caller):
            caller = caller.f_back
        if caller is None or sys.gettrace() is not None:
            return

        def cut(frame: FrameType, event: str, arg: Any) -> Any:
            """Leave out what is below the caller, when the error has come to it: earlier its line is not there yet."""
            sys.settrace(None)
            frame.f_trace = None
            if event == "exception" and arg[1] is error:
                arg[2].tb_next = None

        caller.f_trace = cut
        sys.settrace(lambda *_: None)


def _is_users(frame: FrameType) -> bool:
    return not any(part in frame.f_code.co_filename for part in _NOT_THE_USERS)
