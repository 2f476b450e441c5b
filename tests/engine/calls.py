"""Watch one training step of the engine: the frames that lead to `optimizer.step`, and the Python calls it makes.

Shared by the tests of the budgets (`test_shape.py`, `test_call_counts.py`). Counts do not depend on the machine.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.parity.framework import ENGINE_ROOT, Framework, load_framework

TORCH = os.path.dirname(torch.__file__)
STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
ENGINE = str(ENGINE_ROOT / "engine")
WARM, COUNTED = 5, 10  # batches before counting, batches counted

Frame = tuple[str, int, str]  # file, line, function


@dataclass
class Step:
    """What was seen of a step.

    Attributes:
        frames: the engine's frames from `Trainer.fit` to `optimizer.step`, outermost first.
        calls: Python functions outside torch that were called per step.
        by_function: the same, by file and function, in total over the counted steps.
        steps: batches begun.
    """

    frames: list[Frame] = field(default_factory=list)
    calls: float = 0.0
    by_function: Counter[str] = field(default_factory=Counter)
    steps: int = 0

    def describe(self) -> str:
        """Frames and calls, a line each."""
        frames = [f"  {os.path.relpath(file, ENGINE)}:{line} {name}" for file, line, name in self.frames]
        calls = [f"  {count / COUNTED:5.1f} {name}" for name, count in self.by_function.most_common(40)]
        return "\n".join(["frames:", *frames, f"calls per step: {self.calls}", *calls])


class Batches:
    """So many times the same batch, without a DataLoader (whose calls are torch's)."""

    def __init__(self, count: int) -> None:
        self.batch, self.count = (torch.ones(2, 4), torch.ones(2, 1)), count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter([self.batch] * self.count)


def watch_a_step(
    log: Callable[[Any, Any], None] | None = None,
    name: str = "engine",
    batches: int = WARM + COUNTED + 2,
    **options: Any,
) -> Step:
    """Fit a tiny module and watch the steps after the first few.

    Args:
        log: what `training_step` logs: a function of the module and the loss.
        name: the framework.
        batches: of an epoch; with 1, and enough epochs, every step is followed by an epoch's boundary.
        options: of the Trainer.
    """
    seen = Step()
    fw = load_framework(name)
    trainer = fw.root.Trainer(**{**quiet_options(), **options})
    gc.disable()  # a collection, which may come at any time, calls those who listen to it
    try:
        trainer.fit(make_net(fw, seen, log), Batches(batches))
    finally:
        gc.enable()
    seen.calls = sum(seen.by_function.values()) / COUNTED
    return seen


def quiet_options() -> dict[str, Any]:
    """Options of a Trainer of one epoch that writes and shows nothing."""
    return {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tempfile.mkdtemp(),
    }


def make_net(fw: Framework, seen: Step, log: Callable[[Any, Any], None] | None) -> Any:
    """A module whose steps switch counting on and off and whose optimizer looks at the frames above it."""

    class LookingSGD(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.frames = frames_above()
            return super().step(closure)

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.steps += 1
            if seen.steps == WARM + 1:
                sys.setprofile(count)
            if seen.steps == WARM + COUNTED + 1:
                sys.setprofile(None)
            loss = self.net(batch[0]).sum()
            if log is not None:
                log(self, loss)
            return loss

        def configure_optimizers(self) -> Any:
            return LookingSGD(self.parameters(), lr=0.1)

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and is_ours_to_count(frame):
            file = frame.f_code.co_filename
            seen.by_function[f"{os.path.relpath(file, ENGINE)}:{frame.f_code.co_qualname}"] += 1

    return Net()


def is_ours_to_count(frame: Any) -> bool:
    """Whether a call is neither torch's, nor the standard library's on behalf of torch, nor this file's."""
    file, caller = frame.f_code.co_filename, frame.f_back
    by_torch = caller is not None and caller.f_code.co_filename.startswith((TORCH, STANDARD_LIBRARY))
    return not (file.startswith(TORCH) or file == __file__ or (file.startswith(STANDARD_LIBRARY) and by_torch))


def frames_above() -> list[Frame]:
    """The engine's frames on the stack, outermost first."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(ENGINE):
            frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back  # type: ignore[assignment]
    return frames[::-1]
