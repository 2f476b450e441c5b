"""What the jobs run: train.py FOLDER EPOCHS SECONDS_PER_BATCH; rank 0 leaves the weights in FOLDER/weights.pt."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "template" / "src" / "{{ package_name }}")]

import torch  # noqa: E402
from engine import Callback  # noqa: E402
from engine.callbacks import ModelCheckpoint  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from tests.engine.strategies.nets import Agree, Deeper  # noqa: E402
from tests.engine.toys import dataset, quiet_trainer  # noqa: E402


class Note(Callback):
    """Says that training goes on, and takes its time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        (self.folder / f"step-{trainer.global_rank}").write_text(str(trainer.global_step))
        time.sleep(self.seconds)


def main(folder: Path, epochs: int, seconds: float) -> None:
    """Train in two processes, from the last checkpoint where there is one; under Slurm the engine finds it itself."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    trainer = quiet_trainer(
        devices="auto",
        strategy="ddp",
        max_epochs=epochs,
        default_root_dir=folder,
        enable_checkpointing=True,
        callbacks=[Agree(), Note(folder, seconds), ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)],
    )
    module = Deeper()
    last = folder / "last.ckpt"
    trainer.fit(
        module,
        DataLoader(dataset(48), batch_size=6, shuffle=True),
        ckpt_path=last if last.exists() and "SLURM_JOB_ID" not in os.environ else None,
    )
    if trainer.is_global_zero and not trainer.interrupted:
        torch.save({"weights": module.state_dict(), "processes": trainer.world_size}, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
