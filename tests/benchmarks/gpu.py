"""Measure the engine on one GPU against a hand-written loop and, where it is installed, Lightning.

    python -m tests.benchmarks.gpu --out results            on a machine with a GPU; a few minutes
    python -m tests.benchmarks.gpu --out results --device cpu --quick    proves that the script runs

Needs torch and the engine only. Every case is measured on its own; one that fails leaves its error in the table and
the others go on. Writes `gpu.json` and `gpu.md` into the folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.contenders import installed
from tests.benchmarks.measure import Budget, Row, rates, rounds
from tests.parity.framework import load_framework


@dataclasses.dataclass(frozen=True)
class Case:
    """A job that all contenders do.

    Attributes:
        what: what the table calls it.
        unit: of what is reported: `work_per_step` divided by the seconds of a step.
        work_per_step: how much of it a step does.
        make_net: a function that gives the network.
        batches: the data, on the host.
        loss: a function of the network and a batch on the device.
        precision: as Lightning calls it.
        compiled: whether the network is compiled.
        steps: how many are timed, after `warm`.
        warm: steps before the clock starts.
        logged: values that the step logs.
    """

    what: str
    unit: str
    work_per_step: float
    make_net: Callable[[], nn.Module]
    batches: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    precision: str = "32-true"
    compiled: bool = False
    steps: int = 300
    warm: int = 30
    logged: int = 0
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda net: torch.optim.AdamW(net.parameters(), 1e-4)


class Meter:
    """Seconds per step by the wall clock, with everything that was queued on the device included."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device, self.seen, self.started = case, device, 0, 0.0

    def tick(self) -> None:
        """Mark the start of a step."""
        if self.seen == self.case.warm:
            self.started = self.now()
        self.seen += 1

    def now(self) -> float:
        """The time at which all work that was queued so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def rate(self) -> float:
        """Work per second, after the last step."""
        return self.case.work_per_step * (self.seen - self.case.warm) / (self.now() - self.started)


class Ready:
    """A few batches, pinned where there is a GPU, given again and again."""

    def __init__(self, made: list[Any], count: int) -> None:
        pin = torch.cuda.is_available()
        self.made = [[t.pin_memory() if pin else t for t in batch] for batch in made]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (self.made[i % len(self.made)] for i in range(self.count))


# ---------------------------------------------------------------- contenders


def bare(case: Case, device: torch.device) -> tuple[float, torch.Tensor]:
    """The loop by hand: rate, and the weights in one vector."""
    net = case.make_net().to(device)
    optimizer, meter = case.optimizer(net), Meter(case, device)
    run = torch.compile(net) if case.compiled else net
    mixed = case.precision == "bf16-mixed"
    for batch in case.batches(case.warm + case.steps):
        meter.tick()
        on_device = [t.to(device, non_blocking=True) for t in batch]
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = case.loss(run, on_device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return meter.rate(), vector(net)


def by_framework(name: str, case: Case, device: torch.device) -> tuple[float, torch.Tensor]:
    """The same by `Trainer.fit`."""
    fw, meter = load_framework(name), Meter(case, device)

    class Module(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = case.make_net()

        def on_fit_start(self) -> None:
            self.run = [torch.compile(self.net) if case.compiled else self.net]  # in a list: no second submodule

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            meter.tick()
            loss = case.loss(self.run[0], batch)
            for i in range(case.logged):
                self.log(f"value_{i}", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return case.optimizer(self.net)

        def on_train_end(self) -> None:
            self.rate = meter.rate()

    module = Module()
    quiet_trainer(fw, device, precision=case.precision).fit(module, case.batches(case.warm + case.steps))
    return module.rate, vector(module.net)


def quiet_trainer(fw: Any, device: torch.device, **options: Any) -> Any:
    """A Trainer of one epoch on the device, without files and display."""
    quiet: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return fw.root.Trainer(**{**quiet, **options})


def vector(net: nn.Module) -> torch.Tensor:
    """All weights of a network, on the host."""
    return torch.cat([p.detach().float().flatten().cpu() for p in net.parameters()])


# ---------------------------------------------------------------- cases


def mlp() -> nn.Module:
    """Three small layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def classify(net: nn.Module, batch: Any) -> torch.Tensor:
    """Cross entropy of (inputs, classes)."""
    return F.cross_entropy(net(batch[0]), batch[1])


def small_batches(count: int) -> Ready:
    """(32, 64) inputs."""
    g = torch.Generator().manual_seed(1)
    made = [[torch.randn(32, 64, generator=g), torch.randint(0, 10, (32,), generator=g)] for _ in range(8)]
    return Ready(made, count)


def convolutions() -> nn.Module:
    """A network that is about as fast as its batch can be copied."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 7, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def pictures(rows: int, count: int) -> Ready:
    """(rows, 3, 224, 224) float inputs: 0.6 MB a row."""
    g = torch.Generator().manual_seed(1)
    made = [[torch.randn(rows, 3, 224, 224, generator=g), torch.randint(0, 10, (rows,), generator=g)] for _ in range(4)]
    return Ready(made, count)


class PictureRows(torch.utils.data.Dataset[Any]):
    """Pictures that workers make from bytes, as from a decoded file."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        g = torch.Generator().manual_seed(3)
        self.raw = torch.randint(0, 255, (8, 3, 256, 256), dtype=torch.uint8, generator=g)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        at = i % 32
        return self.raw[i % 8, :, at : at + 224, at : at + 224].float() / 255, i % 10


def picture_loader(rows: int, workers: int, count: int) -> Any:
    """A DataLoader with workers and pinned memory."""
    return torch.utils.data.DataLoader(
        PictureRows(rows * count), batch_size=rows, num_workers=workers, pin_memory=torch.cuda.is_available()
    )


class Block(nn.Module):
    """Attention and a multi-layer perceptron, normalised before each. x: (batch, time, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, time, width) to the same shape."""
        b, t, w = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(b, t, 3, self.heads, w // self.heads).unbind(2)
        seen = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, w))
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A causal language model."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, time: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map (batch, time) ids to (batch, time, vocabulary) scores."""
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def next_token(net: nn.Module, batch: Any) -> torch.Tensor:
    """Cross entropy of the next token."""
    scores = net(batch[0][:, :-1])
    return F.cross_entropy(scores.flatten(0, 1).float(), batch[0][:, 1:].flatten())


def token_batches(rows: int, time: int, vocabulary: int, count: int) -> Ready:
    """(rows, time + 1) ids."""
    g = torch.Generator().manual_seed(1)
    return Ready([[torch.randint(0, vocabulary, (rows, time + 1), generator=g)] for _ in range(4)], count)


def cases(quick: bool, device: torch.device) -> list[Case]:
    """The jobs that are timed."""
    fused = functools.partial(_adamw, fused=device.type == "cuda")
    small = Case("small batches, MLP", "steps/s", 1, mlp, small_batches, classify, optimizer=fused,
                 steps=60 if quick else 1500)  # fmt: skip
    rows = 4 if quick else 256
    copied = Case(
        "bound by the copy to the device", "rows/s", rows, convolutions, functools.partial(pictures, rows), classify,
        optimizer=fused, steps=6 if quick else 150, warm=2 if quick else 20,
    )  # fmt: skip
    workers = 1 if quick else 8
    loaded = dataclasses.replace(
        copied, what=f"bound by a loader of {workers} workers", steps=6 if quick else 60,
        batches=functools.partial(picture_loader, rows, workers),
    )  # fmt: skip
    size = (2, 64, 4, 512, 64) if quick else (12, 768, 12, 50304, 1024)
    batch = 2 if quick else 16
    text = Case(
        "transformer of 124 M, bf16, eager" if not quick else "small transformer, bf16, eager", "tokens/s",
        batch * size[-1], functools.partial(Transformer, *size),
        functools.partial(token_batches, batch, size[-1], size[-2]), next_token, "bf16-mixed", optimizer=fused,
        steps=5 if quick else 60, warm=2 if quick else 10,
    )  # fmt: skip
    compiled = dataclasses.replace(text, what=text.what.replace("eager", "compiled"), compiled=True)
    logging = dataclasses.replace(small, what="small batches, 10 values logged", logged=10)
    return [small, logging, copied, loaded, text, *([] if quick else [compiled])]


def _adamw(net: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1e-4, fused=fused)


def measured(case: Case, device: torch.device, count: int) -> Row:
    """One row: the rate of every contender, `count` times in turn."""
    weights: dict[str, torch.Tensor] = {}

    def run(name: str) -> float:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        rate, weights[name] = bare(case, device) if name == "bare" else by_framework(installed()[name], case, device)
        return rate

    samples = rounds({name: functools.partial(run, name) for name in ("bare", *installed())}, count)
    same = all(torch.allclose(w, weights["bare"], rtol=1e-3, atol=1e-4) for w in weights.values())
    return Row(case.what, case.unit, samples, Budget(), same)


# ---------------------------------------------------------------- behaviour that needs a GPU


def scaled_like_by_hand(device: torch.device) -> dict[str, Any]:
    """16-mixed with its scaler against a loop by hand; one batch overflows, so one step is skipped."""
    batches = [[t.clone() for t in batch] for batch in small_batches(24)]
    batches[7][0][0, 0] = 1e6  # becomes infinite in half precision
    net = mlp().to(device)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.05), torch.amp.GradScaler("cuda", growth_interval=5)
    for batch in batches:
        x, y = (t.to(device) for t in batch)
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    fw = load_framework("engine")
    plugins = __import__("engine.plugins", fromlist=["MixedPrecision"])

    class Module(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    ours = torch.amp.GradScaler("cuda", growth_interval=5)
    precision = plugins.MixedPrecision("16-mixed", "cuda", ours)
    module = Module()
    quiet_trainer(fw, device, plugins=[precision], gradient_clip_val=1.0).fit(module, Ready(batches, len(batches)))
    return {
        "same weights": bool(torch.equal(vector(net), vector(module.net))),
        "scale by hand": scaler.get_scale(),
        "scale of the engine": ours.get_scale(),
    }


def batch_size_until_memory_ends(device: torch.device) -> dict[str, Any]:
    """`scale_batch_size` with a real out-of-memory error, in a part of the card's memory."""
    fw = load_framework("engine")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.05)
    total = torch.cuda.get_device_properties(device).total_memory * 0.05

    class Module(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.batch_size = convolutions(), 2

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(PictureRows(20_000), batch_size=self.batch_size)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return classify(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    out: dict[str, Any] = {"memory allowed, GB": round(total / 1e9, 2)}
    try:
        for mode in ("power", "binsearch"):
            module = Module()
            before = vector(module)
            tuner = fw.tuner.Tuner(quiet_trainer(fw, device))
            out[f"batch size, {mode}"] = tuner.scale_batch_size(module, mode=mode, max_trials=16)
            out[f"weights untouched, {mode}"] = bool(torch.equal(before, vector(module)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    return out


def no_step_waits_for_the_device(device: torch.device) -> dict[str, Any]:
    """Fit with torch's own alarm for synchronisations switched on between two steps."""
    fw, seen = load_framework("engine"), {"steps watched": 0}

    class Module(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            torch.cuda.set_sync_debug_mode("error" if 5 <= batch_idx < 45 else "default")
            seen["steps watched"] += 5 <= batch_idx < 45
            loss = classify(self.net, batch)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-4, fused=True)

    try:
        quiet_trainer(fw, device, gradient_clip_val=1.0).fit(Module(), small_batches(60))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {**seen, "waited": "never"}


BEHAVIOUR: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "16-mixed against a loop by hand": scaled_like_by_hand,
    "scale_batch_size until memory ends": batch_size_until_memory_ends,
    "synchronisations per step": no_step_waits_for_the_device,
}


def attempt(what: str, call: Callable[[], Any], failures: dict[str, str]) -> Any:
    """Call; a failure is kept under `what` and None returned."""
    print(f"{what} ...", flush=True)
    try:
        return call()
    except Exception:
        failures[what] = traceback.format_exc(limit=-4)
        print(failures[what], flush=True)
        return None


def write(folder: Path, rows: list[Row], facts: dict[str, Any], failures: dict[str, str], machine: str) -> str:
    """Write both files; called after every case, so that what was measured is never lost."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": [dataclasses.asdict(r) for r in rows], "facts": facts, "failures": failures}
    (folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    parts = [rates(rows), machine]
    parts += [f"- {name}: {', '.join(f'{k}: {v}' for k, v in fact.items())}" for name, fact in facts.items()]
    parts += [f"Failed: {name}\n\n```\n{text}```" for name, text in failures.items()]
    text = "\n\n".join(parts) + "\n"
    (folder / "gpu.md").write_text(text)
    return text


def main() -> None:
    """Parse the command line, measure everything, write as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="part of the name of a case; may be repeated")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = f"{name}, Python {platform.python_version()}, torch {torch.__version__}. Rates: larger is better."
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    failures: dict[str, str] = {}
    wanted = [c for c in cases(args.quick, device) if not args.only or any(o in c.what for o in args.only)]
    for case in wanted:
        row = attempt(case.what, functools.partial(measured, case, device, args.rounds), failures)
        rows += [] if row is None else [row]
        write(args.out, rows, facts, failures, machine)
    for what, check in BEHAVIOUR.items() if device.type == "cuda" else ():
        if not args.only or any(o in what for o in args.only):
            fact = attempt(what, functools.partial(check, device), failures)
            facts.update({} if fact is None else {what: fact})
            write(args.out, rows, facts, failures, machine)
    print(write(args.out, rows, facts, failures, machine))


if __name__ == "__main__":
    main()
