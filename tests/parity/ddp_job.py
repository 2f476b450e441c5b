"""One job on two CPU processes (gloo); every rank writes `OUT.rank<N>.json`.

Run it as:

    python -m tests.parity.ddp_job --framework lightning.pytorch --strategy ddp --out DIR/ddp

`torchrun` is not needed: the framework starts the second process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.parity.framework import Framework, load_framework
from tests.parity.jobs import Counting, by_name, weights


def make_net(fw: Framework) -> Any:
    """A classifier that keeps the rows and losses it saw and logs with and without `sync_dist`."""

    class Net(fw.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
            self.rows: list[Any] = []
            self.losses: list[float] = []
            self.prepared = 0

        def prepare_data(self) -> None:
            self.prepared += 1

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y, i = batch
            loss = F.cross_entropy(self.net(x), y)
            self.rows.append(i.tolist())
            self.losses.append(loss.item())
            self.log("train_local", loss, on_step=False, on_epoch=True)
            self.log("train_sync", loss, on_step=True, on_epoch=True, sync_dist=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y, _ = batch
            out = self.net(x)
            self.log("val_sync", F.cross_entropy(out, y), sync_dist=True)
            self.log("val_local", F.cross_entropy(out, y))
            self.log("n_sum", float(len(x)), reduce_fx="sum", sync_dist=True)
            self.log("n_max", float(len(x)), reduce_fx="max", sync_dist=True)
            self.log("rank0", float(self.global_rank), rank_zero_only=True)

        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 0:
                gathered = self.all_gather(torch.tensor([float(self.global_rank)]))
                self.gathered = gathered.flatten().tolist()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Net()


def make_dump(fw: Framework, out: str) -> Any:
    """A callback by which every rank writes what it saw."""

    class Dump(fw.Callback):  # type: ignore[name-defined, misc]
        def on_train_end(self, trainer: Any, module: Any) -> None:
            seen = {
                "rank": trainer.global_rank,
                "world": trainer.world_size,
                "is_global_zero": trainer.is_global_zero,
                "rows": module.rows,
                "losses": module.losses,
                "metrics": by_name(trainer.callback_metrics),
                "weights": weights(module),
                "global_step": trainer.global_step,
                "gathered": module.gathered,
                "prepared": module.prepared,
                "num_training_batches": trainer.num_training_batches,
            }
            Path(f"{out}.rank{trainer.global_rank}.json").write_text(json.dumps(seen, separators=(",", ":")) + "\n")

    return Dump()


def main() -> None:
    """Parse the command line and train on two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="engine")
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--out", required=True)
    parser.add_argument("--accumulate", type=int, default=1)
    args = parser.parse_args()
    fw = load_framework(args.framework)
    Path(args.out).absolute().parent.mkdir(parents=True, exist_ok=True)
    trainer = fw.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy=args.strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[make_dump(fw, args.out)],
        accumulate_grad_batches=args.accumulate,
        default_root_dir=tempfile.mkdtemp(),
    )
    rows = DataLoader(Counting(37), batch_size=4, shuffle=True)
    trainer.fit(make_net(fw), rows, DataLoader(Counting(21), batch_size=4))


if __name__ == "__main__":
    main()
