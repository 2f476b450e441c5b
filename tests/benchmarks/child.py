"""What a fresh interpreter measures: `python -m tests.benchmarks.child TASK [CONTENDER] [numbers]`.

Prints one JSON object: name -> number. torch is imported first, and its time is known apart.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.process_time()
import torch  # noqa: E402

TORCH_DONE = time.process_time()
ENGINE_ROOT = Path(__file__).resolve().parents[2] / "template" / "src" / "{{ package_name }}"
PACKAGE = {"lightning": "lightning.pytorch", "ours": "engine"}


def task_start(contender: str) -> dict[str, float]:
    """CPU milliseconds until all is imported, and until the first step is done (torch included); peak memory in MB."""
    before = time.process_time()
    if contender != "bare":
        sys.path.insert(0, str(ENGINE_ROOT))
        importlib.import_module(PACKAGE[contender])
    imported = time.process_time()
    _train(contender, batches=1)
    stepped = time.process_time()
    _train(contender, batches=100)
    torch_ms = (TORCH_DONE - STARTED - before) * 1e3
    return {"import": torch_ms + imported * 1e3, "first": torch_ms + stepped * 1e3, "mb": _peak_mb()}


def _train(contender: str, batches: int) -> None:
    from tests.benchmarks import contenders, work

    job, clock = work.Work(batches=batches), work.Clock()
    if contender == "bare":
        contenders.bare(job, clock)
    else:
        contenders.by_framework(PACKAGE[contender], job, clock)


def _peak_mb() -> float:
    """Peak resident memory of this program; what rusage says holds that of the process that started it, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def task_save(megabytes: str, count: str) -> dict[str, Any]:
    """Milliseconds to save, by place: to a disk, until it is on that disk, and to memory (tmpfs).

    All contenders save in turn, `count` times, where no file is: place -> contender -> one per round.
    """
    from tests.benchmarks.contenders import installed
    from tests.benchmarks.measure import rounds

    net = _weights(int(megabytes))
    saves = {name: _io(name, net)[0] for name in ("bare", *installed())}

    def to(folder: str, then: Callable[[str], None] = lambda path: None) -> dict[str, list[float]]:
        def run(save: Callable[[str], Any]) -> float:
            os.sync()  # what others have left to be written is not ours to wait for
            path = os.path.join(folder, "x.ckpt")
            taken = _timed(lambda: (save(path), then(path)))
            os.unlink(path)
            return taken

        return rounds({name: functools.partial(run, save) for name, save in saves.items()}, int(count))

    with tempfile.TemporaryDirectory() as folder:
        found = {"disk": to(folder), "synced": to(folder, _sync)}
    if os.path.isdir("/dev/shm"):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            found["memory"] = to(folder)
    return found


def _sync(path: str) -> None:
    """Wait until a file is on its disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def task_checkpoint(contender: str, megabytes: str) -> dict[str, float]:
    """Megabytes by which saving raises the peak of memory; milliseconds to load and to hand over to the background."""
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "x.ckpt")
    save, load, save_later, wait = _io(contender, _weights(int(megabytes)))
    before = _peak_mb()
    save(path)
    grown = _peak_mb() - before
    loaded = _timed(lambda: load(path))  # once, as a resume does; a second would reuse memory
    stalls = []
    for i in range(3):  # the first gets memory, which the others use again
        stalls.append(_timed(lambda i=i: save_later(os.path.join(folder, f"{i}.ckpt"))))
        wait()
    shutil.rmtree(folder)
    return {"save_mb": grown, "load": loaded, "stall": min(stalls)}


def _weights(megabytes: int) -> torch.nn.Module:
    return torch.nn.ParameterList(torch.randn(5_000_000) for _ in range(max(megabytes // 20, 1)))


IO = tuple[Callable[[str], Any], Callable[[str], Any], Callable[[str], Any], Callable[[], None]]


def _io(contender: str, net: torch.nn.Module) -> IO:
    """How a contender saves, loads, saves in the background, and waits for that."""
    return _bare_io(net) if contender == "bare" else _framework_io(contender, net)


def _bare_io(net: torch.nn.Module) -> IO:
    state = {"state_dict": net.state_dict(), "epoch": 1}
    copies: list[Any] = []

    def copy(path: str) -> None:
        copies[:] = [{k: v.clone() for k, v in state["state_dict"].items()}]  # type: ignore[attr-defined]

    return lambda path: torch.save(state, path), lambda path: torch.load(path, weights_only=True), copy, lambda: None


def _framework_io(contender: str, net: torch.nn.Module) -> IO:
    from tests.benchmarks.contenders import make_trainer
    from tests.parity.framework import load_framework

    fw = load_framework(PACKAGE[contender])
    plugins = importlib.import_module(f"{fw.name}.plugins")

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.net[0][:1].sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.net[0]], lr=0.0)

    def fitted(**options: Any) -> Any:
        trainer = make_trainer(fw, max_epochs=1, limit_train_batches=1, **options)
        trainer.fit(Net(), [torch.zeros(1)])
        return trainer

    plain, background = fitted(), plugins.AsyncCheckpointIO()
    later = fitted(plugins=[background])
    if hasattr(later.strategy, "_checkpoint_io") and contender == "lightning":
        # Lightning ends its background writer with the fit; a save after that starts it again.
        background._executor = None
    return (
        plain.save_checkpoint,
        lambda path: plugins.TorchCheckpointIO().load_checkpoint(path),
        later.save_checkpoint,
        lambda: _join(background),
    )


def _join(background: Any) -> None:
    """Wait for the save under way; ours as its next one would, Lightning's can only be ended."""
    if hasattr(background, "_wait"):
        background._wait()
        return
    background.teardown()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    background._executor = None


def _timed(call: Callable[[], Any]) -> float:
    before = time.perf_counter()
    call()
    return (time.perf_counter() - before) * 1e3


def task_ddp(width: str, rows: str, steps: str, count: str) -> dict[str, Any]:
    """Microseconds per step of two processes, by the wall clock and of CPU time, and sums of the weights.

    All contenders run in turn in the same processes, `count` times: name of the number -> contender -> one per round.
    """
    from tests.benchmarks.contenders import by_framework, installed
    from tests.benchmarks.measure import rounds
    from tests.benchmarks.work import Clock, Work

    work = Work(width=int(width), rows=int(rows), batches=int(steps))
    options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    found: dict[str, Any] = {"us": {}, "cpu_us": {}, "weights": {}}

    def run(contender: str) -> float:
        wall, cpu = Clock(time.perf_counter, skip=20, last=work.batches), Clock(skip=20, last=work.batches)
        clocks: Any = _Clocks(wall, cpu)
        if contender == "bare":
            net = _ddp_by_hand(work, clocks)
        else:
            net = by_framework(PACKAGE[contender], work, clocks, **options)
        total = sum(p.detach().double().abs().sum().item() for p in net.parameters())
        for number, value in (("us", wall.per_tick * 1e6), ("cpu_us", cpu.per_tick * 1e6), ("weights", total)):
            found[number].setdefault(contender, []).append(value)
        return 0.0

    torch.distributed.init_process_group("gloo")
    rounds({name: functools.partial(run, name) for name in ("bare", *installed())}, int(count))
    if torch.distributed.get_rank() != 0:
        return {}
    # The first round warms up.
    return {number: {name: values[1:] for name, values in by.items()} for number, by in found.items()}


class _Clocks:
    """Several clocks, ticked at once."""

    def __init__(self, *clocks: Any) -> None:
        self.clocks = clocks

    def tick(self) -> None:
        for clock in self.clocks:
            clock.tick()


def _ddp_by_hand(work: Any, clocks: Any) -> torch.nn.Module:
    from tests.benchmarks.work import loss_of, optimizer_of

    net = work.model()
    wrapped = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = optimizer_of(net)
    for batch in work.data():
        clocks.tick()
        loss, _ = loss_of(wrapped, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net  # type: ignore[no-any-return]


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = globals()[f"task_{sys.argv[1]}"](*sys.argv[2:])
    if result:
        print(json.dumps(result), flush=True)
