"""Starting the processes of a run, watching them, and bringing back what rank 0 leaves behind.

Owns: who starts what, and what is said when one of them dies. Does not own: what the processes do together
(`processes`). Three ways, in this order:

    a launcher started us (torchrun, Kubeflow, Ray, Vertex AI, srun)   its environment says who we are
    "fork" and "spawn"   every rank is a new process that runs one function; this process only watches, so that the
                         script's other lines run once, and what rank 0 leaves behind comes back (`handover`)
    "popen"              this process becomes torchrun, which runs the same command again, once for each rank
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from ..distributed import in_srun, rank_zero_only
from ..errors import MisconfigurationException
from ..seed import rng_state, set_rng_state
from ..signals import handled_by
from .collectives import FLIGHT_HINT

# gloo would look the host's name up, and laptops have none
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
GRACE_S = 2.0  # what the other ranks get, after one has failed, to end by themselves


@dataclass(frozen=True)
class Place:
    """Where this process stands among all.

    Attributes:
        address: Where all meet, with `port`.
        is_served: Somebody else serves the meeting point (torchrun's agent, the watching process), not rank 0.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    is_served: bool = False

    @property
    def node_rank(self) -> int:
        """Index of this node."""
        return self.rank // self.local_world_size

    def variables(self) -> dict[str, str]:
        """Return the environment variables that torchrun would have set."""
        numbers = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "GROUP_RANK": self.node_rank,
            "MASTER_PORT": self.port,
            "TORCHELASTIC_USE_AGENT_STORE": self.is_served,
        }
        return {"MASTER_ADDR": self.address, **{name: str(number) for name, number in numbers.items()}}


def launched_place() -> Place | None:
    """Return the place that a launcher gave this process by torchrun's variables, or else srun by its own; or None.

    Raises:
        MisconfigurationException: Some of the variables are there and others are missing.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "RANK" not in found or "WORLD_SIZE" not in found:
        return _slurm_place()
    if len(found) < len(names) and found["WORLD_SIZE"] == "1":
        return None
    missing = [name for name in names if name not in found]
    if missing:
        raise MisconfigurationException(
            f"The environment says RANK={found['RANK']} of WORLD_SIZE={found['WORLD_SIZE']}, but {', '.join(missing)} "
            "is not set. Start with torchrun, which sets them all, or unset RANK and WORLD_SIZE."
        )
    rank, world_size = int(found["RANK"]), int(found["WORLD_SIZE"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    local_rank = int(os.environ.get("LOCAL_RANK", rank % local_world_size))
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(
        rank, world_size, local_rank, local_world_size, found["MASTER_ADDR"], int(found["MASTER_PORT"]), is_served
    )


def _slurm_place() -> Place | None:
    """Return the place of one of several tasks of `srun`, or None."""
    step = {name: os.environ.get(f"SLURM_{name}", "") for name in ("PROCID", "LOCALID", "NODEID", "STEP_NUM_TASKS")}
    if not in_srun() or not all(step.values()) or step["STEP_NUM_TASKS"] == "1":
        return None
    rank, local_rank, node, count = map(int, step.values())
    per_node: list[int] = []
    for tasks, _, nodes in re.findall(r"(\d+)(\(x(\d+)\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"]):
        per_node += [int(tasks)] * int(nodes or 1)
    port = 20000 + (int(os.environ["SLURM_JOB_ID"]) + int(os.environ.get("SLURM_STEP_ID", 0))) % 10000
    return Place(rank, count, local_rank, per_node[node], _first_host(os.environ["SLURM_STEP_NODELIST"]), port)


@functools.cache
def _first_host(nodes: str) -> str:
    """Return the first host of a list that Slurm has shortened, such as `gpu[01-04]`."""
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]


def start_method_for(device_type: str) -> str:
    """Return how to start processes where the user does not say: "fork" where it is safe, else "popen".

    A forked process cannot use CUDA once anything has asked the driver for a device, which scripts do in passing
    (`torch.cuda.is_available()`); on the CPU there is no such trap.

    Raises:
        MisconfigurationException: Neither is possible here.
    """
    forks = sys.platform == "linux" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    main = sys.modules.get("__main__")
    has_command = hasattr(main, "__file__") or "-c" in sys.orig_argv
    if forks and (device_type == "cpu" or not has_command):
        return "fork"
    if has_command:
        return "popen"
    raise MisconfigurationException(
        "Several processes cannot be started from this notebook or shell: CUDA is in use already, or the system cannot "
        "fork. Restart it and call `fit` before anything else touches the GPU, or run a script."
    )


# Workers: this process watches.


def run_in_workers(trainer: Any, name: str, args: tuple[Any, ...], *, count: int, start_method: str) -> Any:
    """Call `trainer.<name>(*args)` in `count` new processes; return what it returned on rank 0.

    What rank 0 changed in the trainer and in the module, `args[0]`, is taken over into those of this process.

    Args:
        trainer: The Trainer; with "spawn" it and the arguments are pickled.
        name: Of a method.
        args: Its arguments.
        count: Number of processes, all on this machine.
        start_method: "fork" or "spawn".

    Raises:
        MisconfigurationException: Something cannot be pickled.
        BaseException: What the first rank to fail raised, with its traceback as a note; the others are ended within
            `GRACE_S` seconds.
    """
    if start_method == "fork":
        importlib.import_module("torch._dynamo")  # optimizers import it, a second or two; here once for all ranks
    store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        places = [Place(rank, count, rank, count, "127.0.0.1", store.port, True) for rank in range(count)]
        context: Any = multiprocessing.get_context(start_method)
        job: Any = (trainer, name, args)
        # Not by multiprocessing's own pickling: it would put the weights into memory that all ranks share.
        job = _pickled_job(job) if start_method == "spawn" else job
        common = (folder, os.getpid(), rng_state(), job)
        ranks = [context.Process(target=_work, args=(place, *common), name=f"rank {place.rank}") for place in places]
        try:
            _start(ranks)
            _watch(ranks)
            _raise_first_failure(ranks, Path(folder))
            left: dict[str, Any] = torch.load(Path(folder) / "left", weights_only=False)
        finally:
            _end(ranks)
            store = None  # a traceback may keep this frame
    trainer.take_over(args[0], left["state"])
    return left["returned"]


def _start(ranks: list[Any]) -> None:
    with warnings.catch_warnings():
        # Python warns of threads; torch's own are idle here, and a child uses one thread (`_limit_threads`).
        warnings.simplefilter("ignore", DeprecationWarning)
        gc.freeze()  # a forked child that collects a store of this process waits for ever for the store's thread
        try:
            for process in ranks:
                process.start()
        finally:
            gc.unfreeze()


def _pickled_job(job: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise MisconfigurationException(
            f"The trainer, the model or the data cannot be sent to a new process ({error}). Move what the message "
            'names to the top level of a module, or use strategy="ddp_fork", which sends nothing, or torchrun.'
        ) from error


def _work(place: Place, folder: str, parent: int, seeds: dict[str, Any], job: Any) -> None:
    """Be one rank: call the method, and leave a file that says how it went."""
    os.environ.update(place.variables())
    rank_zero_only.rank = place.rank  # type: ignore[attr-defined]
    _limit_threads(place, forked=not isinstance(job, bytes))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    trainer, name, args = pickle.loads(job) if isinstance(job, bytes) else job
    strategy = trainer.strategy
    set_rng_state(seeds)  # python seeds its generator anew in a forked process, and a spawned one has never been seeded
    try:
        strategy.settle(place)
        returned = getattr(trainer, name)(*args)
        if place.rank == 0:
            torch.save({"returned": returned, "state": trainer.hand_over(args[0])}, Path(folder) / "left")
    except BaseException as error:
        report = {"rank": place.rank, "time": strategy.failed_at or time.time(), "text": traceback.format_exc()}
        report["error"] = _pickled(error)
        (Path(folder) / f"failure-{place.rank}").write_bytes(pickle.dumps(report))
        sys.exit(1)
    finally:
        strategy.leave()


def _pickled(error: BaseException) -> bytes | None:
    """Return the exception as bytes that can be read back; its notes and causes are in the text already."""
    try:
        data = pickle.dumps(error)
        return data if str(pickle.loads(data)) == str(error) else None
    except Exception:
        return None


def _limit_threads(place: Place, forked: bool) -> None:
    # GNU OpenMP hangs in a forked process that wants threads when its parent had some.
    torch.set_num_threads(1 if forked else _threads(place.local_world_size))
    os.environ.update({**_LOOPBACK, **os.environ})


def _threads(processes: int) -> int:
    return max(1, (os.cpu_count() or 1) // processes)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _watch(ranks: list[Any]) -> None:
    """Wait until every rank has ended; when one fails, the others have `GRACE_S`. A second Ctrl-C ends all at once."""

    def forward(number: int, _: Any) -> None:
        for process in ranks:
            if process.exitcode is None:
                os.kill(process.pid, number)

    with handled_by(forward, signal.SIGTERM):  # the ranks then end properly
        try:
            _join(ranks)
        except KeyboardInterrupt:  # the ranks have it too: they finish the batch, save and leave
            _join(ranks)


def _join(ranks: list[Any]) -> None:
    deadline = float("inf")
    while time.monotonic() < deadline and any(process.exitcode is None for process in ranks):
        alive = [process.sentinel for process in ranks if process.exitcode is None]
        wait(alive, timeout=min(1.0, max(0.0, deadline - time.monotonic())))
        if deadline == float("inf") and any(process.exitcode not in (None, 0) for process in ranks):
            deadline = time.monotonic() + GRACE_S


def _end(ranks: list[Any]) -> None:
    started = [process for process in ranks if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()


def _raise_first_failure(ranks: list[Any], folder: Path) -> None:
    """Raise what the rank that failed first raised, if one did; what follows from it in other ranks is left out."""
    codes = [process.exitcode for process in ranks]
    if not any(codes):
        return
    reports = sorted(
        (pickle.loads(file.read_bytes()) for file in folder.glob("failure-*")),
        key=lambda report: (report["time"], report["rank"]),
    )
    told = {report["rank"] for report in reports}
    silent = [rank for rank, code in enumerate(codes) if code and rank not in told]
    if silent or not reports:
        code = codes[silent[0]]
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(
            f"Rank {silent[0]} of {len(ranks)} was {how} before it could say why. SIGKILL mostly means that memory ran "
            "out; with spawned processes, guard the script with `if __name__ == '__main__':`."
            + (f" SIGABRT: {FLIGHT_HINT}" if code == -signal.SIGABRT else "")
        )
    first = reports[0]
    error = pickle.loads(first["error"]) if first["error"] is not None else RuntimeError("A rank failed; see below.")
    error.add_note(f"\nRank {first['rank']} of {len(ranks)} failed:\n\n{first['text']}")
    raise error


# The same command again, by torchrun.


def run_again(count: int) -> NoReturn:
    """Become torchrun, which runs this process's own command `count` times and says which rank failed."""
    environment = {"OMP_NUM_THREADS": str(_threads(count)), **_LOOPBACK, **os.environ}
    agent = str(Path(__file__).with_name("agent.py"))
    launcher = ["-P", agent, "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}"]
    again = [sys.executable, *launcher, "--no-python", sys.executable, *sys.orig_argv[1:]]
    sys.stdout.flush()
    os.execve(sys.executable, again, environment)
