"""Run by several processes under torchrun: many fits in one process group, for starting processes is what takes time.

torchrun --standalone --nproc-per-node N checks.py FILE; rank 0 leaves {name: weights, or what went wrong} in FILE.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "template" / "src" / "{{ package_name }}")]

import torch  # noqa: E402
from engine import Callback  # noqa: E402
from engine.callbacks import ModelCheckpoint  # noqa: E402
from engine.strategies import DDPStrategy, FSDPStrategy  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from tests.engine.strategies.nets import Agree, Deeper, IsSharded, Stack, weights  # noqa: E402
from tests.engine.toys import BoringModel, dataset, loader, quiet_trainer  # noqa: E402

ROWS, GLOBAL_BATCH = 48, 12
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 2},
    "clip": {"gradient_clip_val": 0.05},
    "accumulate-clip-value": {
        "accumulate_grad_batches": 3,
        "gradient_clip_val": 0.1,
        "gradient_clip_algorithm": "value",
    },
    "64-true": {"precision": "64-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
}
MODULES = {"ddp": Deeper, "fsdp": Stack}


def fit(kind: str, processes: int, options: dict[str, Any], strategy: Any = None, **more: Any) -> Any:
    """Train 48 rows in batches of 12 over all processes, twice; return the module."""
    module: Any = MODULES[kind]()
    ckpt_path, callbacks = more.pop("ckpt_path", None), more.pop("callbacks", [])
    if processes > 1:
        callbacks = [*callbacks, IsSharded() if kind == "fsdp" else Agree()]
    settings: dict[str, Any] = {"devices": processes, "max_epochs": 2, "callbacks": callbacks, **more, **options}
    trainer = quiet_trainer(strategy=(strategy or kind) if processes > 1 else "auto", **settings)
    torch.manual_seed(5)
    train = DataLoader(dataset(ROWS), batch_size=GLOBAL_BATCH // processes, shuffle=True)
    trainer.fit(module, train, loader(7, 2), ckpt_path=ckpt_path)
    return module


class Unused(Deeper):
    """Has a layer that no batch uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Gathers(BoringModel):
    """Learns from the rows of all ranks, and has gradients go back to the rank that a row came from."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rank, size = self.global_rank, self.trainer.world_size
        own = torch.full((2,), float(rank), requires_grad=True)
        everywhere = self.all_gather({"own": own, "rank": rank}, sync_grads=True)
        assert everywhere["own"].shape == (size, 2)
        assert everywhere["rank"].tolist() == list(range(size))
        (everywhere["own"] * (rank + 1)).sum().backward()
        assert own.grad is not None
        assert own.grad.tolist() == [sum(range(1, size + 1))] * 2
        assert not self.all_gather(own).requires_grad
        return self.loss(batch)


class CountsSyncs(Callback):
    """Counts all-reduces of gradients: one at the batch that steps, none before it."""

    def __init__(self) -> None:
        self.calls = 0

    def hook(self, state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are text
        self.calls += 1
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.calls == (batch_idx + 1) // 2, (self.calls, batch_idx)


def hooks(size: int, folder: Path) -> Any:
    compressing = DDPStrategy(
        ddp_comm_hook=default_hooks.allreduce_hook, ddp_comm_wrapper=default_hooks.fp16_compress_wrapper
    )
    return fit("ddp", size, {}, compressing)


def static_graph(size: int, folder: Path) -> Any:
    return fit("ddp", size, {}, DDPStrategy(static_graph=True))


def without_sync_while_accumulating(size: int, folder: Path) -> None:
    counter = CountsSyncs()
    strategy = DDPStrategy(ddp_comm_hook=counter.hook)
    fit("ddp", size, {"accumulate_grad_batches": 2, "max_epochs": 1}, strategy, callbacks=[counter])


def unused_parameters(size: int, folder: Path) -> None:
    trainer = quiet_trainer(devices=size, strategy="ddp_find_unused_parameters_true", callbacks=[Agree()])
    trainer.fit(Unused(), loader(12, 2))


def all_gather(size: int, folder: Path) -> None:
    quiet_trainer(devices=size, strategy="ddp").fit(Gathers(), loader(12, 2))


def resumed(size: int, folder: Path) -> Any:
    saver = ModelCheckpoint(folder, save_last=True)
    fit("ddp", size, {"max_epochs": 1}, callbacks=[saver], enable_checkpointing=True)
    return fit("ddp", size, {}, ckpt_path=folder / "last.ckpt")


def fsdp_checkpointed_sharded(size: int, folder: Path) -> Any:
    saver = ModelCheckpoint(folder / "sharded", save_last=True)
    strategy = FSDPStrategy(state_dict_type="sharded", activation_checkpointing_policy={type(Stack().blocks[0])})
    fit("fsdp", size, {"max_epochs": 1}, strategy, callbacks=[saver], enable_checkpointing=True)
    return fit("fsdp", size, {}, ckpt_path=folder / "sharded" / "last.ckpt")


SAME_AS_ALONE = {"static_graph": "ddp", "resumed": "ddp", "fsdp_checkpointed_sharded": "fsdp"}
OTHERS = [
    *(hooks, static_graph, without_sync_while_accumulating, unused_parameters, all_gather, resumed),
    fsdp_checkpointed_sharded,
]


def main(file: Path, size: int) -> None:
    """Run everything; a check that fails says so, and the others go on."""
    left: dict[str, Any] = {}
    for kind in MODULES:
        for name, options in OPTIONS.items():
            left[f"{kind} {name}"] = attempt(lambda kind=kind, options=options: fit(kind, size, options))
    for check in OTHERS:
        left[check.__name__] = attempt(lambda check=check: check(size, file.parent))
    if torch.distributed.get_rank() == 0:
        torch.save(left, file)


def attempt(check: Any) -> Any:
    try:
        found = check()
    except Exception:
        traceback.print_exc()  # the other ranks may wait for this one, and be ended before they leave anything
        return traceback.format_exc()
    return weights(found) if isinstance(found, nn.Module) else found


if __name__ == "__main__":
    import os

    main(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]))
