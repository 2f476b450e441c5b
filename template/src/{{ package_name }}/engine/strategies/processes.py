"""What all strategies of several processes share: meeting, agreeing, moving data between ranks, and failing well.

Owns: the process group, collectives, and who is named when a rank is missing or fails. Does not own: how a module is
trained (`ddp`) and how processes are started (`launch`).
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import re
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ..accelerators import Accelerator, select_accelerator
from ..distributed import log, rank_zero_only
from ..errors import MisconfigurationException
from .base import Strategy
from .collectives import FLIGHT_HINT, FLIGHT_RECORDER, Gather, default_backend, gather, let_gloo_finish
from .launch import GRACE_S, Place, launched_place, run_again, run_in_workers, start_method_for

DEFAULT_TIMEOUT = timedelta(minutes=30)  # torch's own for gloo
_PATIENCE_S = 1.0  # how long ranks that want to stop wait for the others to want it too
_BROKEN = re.compile(r"[Cc]onnection (closed|reset)|[Bb]roken pipe|[Tt]imed out|[Rr]ead error|NCCL|[Cc]onnect")
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}

_BATCH_NORM = nn.modules.batchnorm._BatchNorm

_store: Store | None = None  # of this process's group, which every strategy of the process shares
_calls = itertools.count()


class ProcessesStrategy(Strategy):
    """Several processes, one for each device.

    Args:
        process_group_backend: Of `torch.distributed`. Default: gloo for the CPU; besides it what the device's backend
            registers (NCCL on CUDA).
        timeout: How long a collective waits for a rank.
        start_timeout: How long the first meeting waits for a rank; those that do not come are named.
        start_method: "fork", "spawn" or "popen" (see `launch`). Default: a launcher's processes where there are any;
            else "fork" where it is safe, else "popen".

    Attributes:
        place: Who this process is; None until that is decided.
        failed_at: Time at which this rank failed, or None.
    """

    is_distributed = True

    def __init__(
        self,
        *,
        process_group_backend: str | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
        start_timeout: timedelta = timedelta(minutes=5),
        start_method: str | None = None,
    ) -> None:
        super().__init__()
        if start_method not in (None, "fork", "spawn", "popen"):
            raise MisconfigurationException(
                f"start_method={start_method!r}: accepted are None, 'fork', 'spawn' and 'popen'."
            )
        self.process_group_backend = process_group_backend
        self.timeout, self.start_timeout = timeout, start_timeout
        self.start_method = start_method
        self.place: Place | None = None
        self.failed_at: float | None = None
        self._watch: _Watch | None = None  # of the call in progress
        self._call = ""
        self.configure(select_accelerator("cpu"), [0], 1, None)

    def configure(self, accelerator: Accelerator, devices: list[int], num_nodes: int, checkpoint_io: Any) -> None:
        """Take the Trainer's devices; the launcher's number of processes counts where there is a launcher.

        Raises:
            MisconfigurationException: The launcher started another number of processes than `devices` asks for.
        """
        self.accelerator, self.devices, self.num_nodes = accelerator, devices, num_nodes
        self.checkpoint_io = checkpoint_io if checkpoint_io is not None else self.checkpoint_io
        place = launched_place()
        if place is not None:
            self.settle(place)
        else:
            self.root_device, self.world_size = accelerator.device(devices[0]), len(devices) * num_nodes

    def settle(self, place: Place) -> None:
        """Be this rank from now on."""
        self.place, self.world_size = place, place.world_size
        self.global_rank, self.local_rank, self.node_rank = place.rank, place.local_rank, place.node_rank
        rank_zero_only.rank = place.rank  # type: ignore[attr-defined]
        if len(self.devices) < place.local_world_size:
            self.devices = list(range(place.local_world_size))
        self.root_device = self.accelerator.device(self.devices[place.local_rank])

    # Starting and meeting.

    def before_launch(self) -> None:
        """Prepare the environment that processes started from here will have."""
        if self.accelerator.before_launch is not None:
            self.accelerator.before_launch(len(self.devices))

    def launch(self, trainer: Any, name: str, *args: Any) -> Any:
        """Call `trainer.<name>(*args)` on every rank; return what it returned here, or on rank 0 of the workers.

        Raises:
            MisconfigurationException: Several nodes, and no launcher.
            SystemExit: Another rank failed first; its traceback says why.
        """
        if self.place is None:
            if self.num_nodes > 1:
                raise MisconfigurationException(
                    f"num_nodes={self.num_nodes} needs a launcher on every node. Start the same command with `torchrun "
                    f"--nnodes={self.num_nodes} --nproc-per-node={len(self.devices)} --rdzv-endpoint=HOST:29500 ...`."
                )
            method = self.start_method or start_method_for(self.root_device.type)
            self.before_launch()
            if method == "popen":
                run_again(len(self.devices))
            return run_in_workers(trainer, name, args, count=len(self.devices), start_method=method)
        try:
            return getattr(trainer, name)(*args)
        except Exception:
            culprit = self.first_failure()
            if culprit in (None, self.global_rank):
                raise
            log.error("Rank %d ends because rank %s failed; see its traceback.", self.global_rank, culprit)
            raise SystemExit(1) from None
        finally:
            self._end_watch()

    def setup_environment(self) -> None:
        """Join the process group, once per process. A collective.

        Raises:
            RuntimeError: Ranks did not come within `start_timeout`; they are named.
        """
        global _store
        super().setup_environment()
        if self.place is None:
            raise MisconfigurationException(
                "This call works in one process, but the Trainer has several devices. Use `devices=1` for it, or "
                "start the script with torchrun."
            )
        if not dist.is_initialized():
            # An agent's store outlives a restart of the processes. Rank 0's own does not, and there the counts of two
            # nodes may differ: one that came back has not been restarted.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if self.place.is_served else "0"
            _store = PrefixStore(f"attempt-{attempt}", self._meet(self.place))
            self._wait_for_all(_store, self.place)
            for name, value in FLIGHT_RECORDER.items():
                os.environ.setdefault(name, value)
            dist.init_process_group(
                self.process_group_backend or default_backend(self.root_device.type),
                store=PrefixStore("group", _store),
                rank=self.place.rank,
                world_size=self.place.world_size,
                timeout=self.timeout,
            )
            atexit.register(self.leave)
        elif _store is None:  # a launcher such as Ray has made the group; its store is the place to meet
            _store = PrefixStore("engine", dist.distributed_c10d._get_default_store())
        self.failed_at, self.is_leaving = None, False
        self._call = f"call-{next(_calls)}"
        if multiprocessing.parent_process() is None:  # else the process that started this one watches
            self._end_watch()
            self._watch = _Watch(self)
            self._watch.start()

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to its device.

        Raises:
            MisconfigurationException: `Trainer(sync_batchnorm=True)` on the CPU.
        """
        super().setup(module, training=training)
        for tensor in [*module.parameters(), *module.buffers()]:
            # Every rank's step would change the same memory.
            if tensor.device.type == "cpu" and tensor.is_shared():  # type: ignore[no-untyped-call]
                tensor.data = tensor.data.clone()
        if training and self.sync_batchnorm:
            if self.root_device.type == "cpu" and any(isinstance(child, _BATCH_NORM) for child in module.modules()):
                raise MisconfigurationException(
                    "`Trainer(sync_batchnorm=True)`: torch synchronises batch norm on GPUs only. Leave it out on the "
                    "CPU, or use `accelerator='gpu'`."
                )
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]

    def checked_output(self, output: Any) -> Any:
        """Return what `training_step` returned.

        Raises:
            MisconfigurationException: It is None.
        """
        if output is None:
            raise MisconfigurationException(
                f"`training_step` returned None on rank {self.global_rank} of {self.world_size}. The other ranks wait "
                "for its gradients, so a batch cannot be skipped by one of them. Return a loss that is zero, for "
                "instance `0.0 * output.sum()`."
            )
        return output

    def _meet(self, place: Place) -> Store:
        """Return the store that all ranks share."""
        try:
            return TCPStore(
                place.address,
                place.port,
                is_master=place.rank == 0 and not place.is_served,
                timeout=self.start_timeout,
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistNetworkError as error:
            raise RuntimeError(
                f"Rank {place.rank} found nobody at {place.address}:{place.port} within "
                f"{self.start_timeout.total_seconds():.0f} s ({str(error).splitlines()[0]}). Rank 0 listens there: see "
                "that it runs, and that MASTER_ADDR and MASTER_PORT are its own."
            ) from None

    def _wait_for_all(self, store: Store, place: Place) -> None:
        store.set(f"here-{place.rank}", "")
        start, said_s = time.monotonic(), 10.0
        while True:
            missing = [rank for rank in range(place.world_size) if not store.check([f"here-{rank}"])]
            waited_s = time.monotonic() - start
            if not missing:
                return
            if waited_s > self.start_timeout.total_seconds():
                raise RuntimeError(
                    f"Rank {place.rank} of {place.world_size} waited {waited_s:.0f} s, but {_ranks(missing)} did not "
                    "come. See the output of that process and its node; then start all again."
                )
            if waited_s >= said_s and place.rank == min(set(range(place.world_size)) - set(missing)):
                log.warning("Waiting for %s for %.0f s.", _ranks(missing), waited_s)
                said_s += 10.0
            time.sleep(min(0.5, 0.01 + waited_s / 10))

    def leave(self) -> None:
        """Leave the process group, at the end of the process."""
        global _store
        self._end_watch()
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # a rank that failed may have left already
                dist.destroy_process_group()
            let_gloo_finish()
        _store = None

    # Failing.

    def on_exception(self, exception: BaseException) -> None:
        """Note that this rank failed, before anything else: from here on it asks the others for nothing.

        An error that only says that a connection broke or a rank did not come gets a note that names the rank.
        """
        if self.is_leaving or self.failed_at is not None or not dist.is_initialized():
            return
        self.failed_at = time.time()
        if _store is None:
            return
        with contextlib.suppress(RuntimeError):  # the store may have ended with its rank
            _store.set(f"{self._call}/failed-{self.global_rank}", "")
            first = int(_store.compare_set(f"{self._call}/failed", "", str(self.global_rank)))
            if not isinstance(exception, RuntimeError) or not _BROKEN.search(str(exception)):
                return
            if first != self.global_rank:
                exception.add_note(f"Rank {first} failed before; its own traceback says why.")
                return
            time.sleep(GRACE_S / 2)  # the others notice in the same moment
            names = {rank: f"{self._call}/failed-{rank}" for rank in range(self.world_size)}
            silent = [rank for rank, name in names.items() if not _store.check([name])]
            if "nccl" in str(self.process_group_backend or default_backend(self.root_device.type)):
                exception.add_note(FLIGHT_HINT)
            if silent:
                exception.add_note(
                    f"Rank {self.global_rank} says: {_ranks(silent)} did not take part. It hangs, or it was killed "
                    "(mostly because memory ran out). See what that process printed last."
                )

    def first_failure(self) -> int | None:
        """Return the rank that failed first in this call, or None."""
        with contextlib.suppress(RuntimeError):
            if _store is not None and _store.check([f"{self._call}/failed"]):
                return int(_store.get(f"{self._call}/failed"))
        return None

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()

    # Agreeing. Outside of a run, and on a rank that failed, everything is answered alone.

    @property
    def _is_alone(self) -> bool:
        return self.failed_at is not None or not dist.is_initialized()

    def unanimous(self, name: str) -> bool:
        """Return whether all ranks call this with the same name; costs ranks that do not call it nothing.

        Those that do wait a second for the others. All who ask get the same answer; they may ask again.
        """
        if self._is_alone or _store is None:
            return True
        vote = _store.add(f"{self._call}/{name}/votes", 1)
        key = f"{self._call}/{name}/{(vote - 1) // self.world_size}"
        if vote % self.world_size == 0:
            _store.compare_set(key, "", "yes")
        with contextlib.suppress(dist.DistStoreError):
            _store.wait([key], timedelta(seconds=_PATIENCE_S))
        return bool(_store.compare_set(key, "", "no") == b"yes")

    def all_max(self, numbers: list[int]) -> list[int]:
        """Return the largest of each number over ranks. A collective."""
        if self._is_alone:
            return numbers
        # On the host, unless the backend reaches devices only.
        device = self.root_device if self.process_group_backend == "nccl" else "cpu"
        tensor = torch.tensor(numbers, dtype=torch.int64, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        largest: list[int] = tensor.tolist()
        return largest

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks."""
        self.all_max([0])

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return rank `src`'s object on every rank; it is pickled."""
        if self._is_alone:
            return obj
        holder = [obj]
        dist.broadcast_object_list(holder, src)
        return holder[0]

    def gather_objects(self, obj: Any) -> list[Any]:
        """Return every rank's object, on every rank; they are pickled."""
        if self._is_alone:
            return [obj]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, obj)
        return found

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all ranks (of one shape), stacked along a new first dimension.

        Args:
            tensor: Of any shape.
            group: A process group. Default: all ranks.
            sync_grads: Let gradients flow back to the rank a row came from.
        """
        if self._is_alone:
            return tensor
        gathered: Tensor = Gather.apply(tensor, group) if sync_grads else gather(tensor, group)  # type: ignore[no-untyped-call]
        return gathered

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str = "mean") -> Tensor:
        """Return the tensor reduced over ranks: "mean" (or "avg"), "sum", "max" or "min"."""
        if self._is_alone:
            return tensor
        name = str(reduce_op).lower()
        reduced = tensor.detach().clone()
        dist.all_reduce(reduced, _OPERATIONS.get(name, dist.ReduceOp.SUM), group=group)
        return reduced / dist.get_world_size(group) if name in ("mean", "avg") else reduced

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks (or any) decided True."""
        return not self.all_max([not decision])[0] if all else bool(self.all_max([decision])[0])

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with rank 0's, one message for each type. A collective."""
        if self._is_alone:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor.detach())
        for group in by_type.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.broadcast(flat, 0)
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):  # type: ignore[no-untyped-call]
                tensor.copy_(part.view_as(tensor))


class _Watch(threading.Thread):
    """Ends this process when another rank has failed and this one waits for it in a collective."""

    def __init__(self, strategy: ProcessesStrategy) -> None:
        super().__init__(daemon=True)
        self.strategy, self.is_over = strategy, threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.5):
            culprit, rank = self.strategy.first_failure(), self.strategy.global_rank
            if culprit in (None, rank) or self.is_over.wait(GRACE_S) or self.strategy.failed_at is not None:
                continue
            log.error("Rank %d ends because rank %s failed; see its traceback.", rank, culprit)
            os._exit(1)

    def end(self) -> None:
        """Return when the thread has ended: one cut off inside the store by the end of Python aborts the process."""
        self.is_over.set()
        self.join(2 * GRACE_S)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
