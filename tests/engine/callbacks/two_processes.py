"""Run by two processes under torchrun: values differ by rank, and what callbacks decide must not.

torchrun --standalone --nproc-per-node 2 two_processes.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "template" / "src" / "{{ package_name }}")]

from engine.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateFinder, ModelCheckpoint, Timer  # noqa: E402

from tests.engine.callbacks.scripted import Scripted, names, rows, trainer  # noqa: E402

RANK = int(os.environ["RANK"])
VALUES = [[0.5, 0.9, 0.4, 0.3], [0.9, 0.1, 0.95, 0.8]][RANK]


def saved(folder: Path) -> dict[str, Any]:
    """Every rank has its own value; rank 0's decides what is best."""
    saver = ModelCheckpoint(dirpath=folder, monitor="val_loss", save_top_k=2, save_last=True, every_n_train_steps=2)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "max_epochs": 4}
    fitted = trainer(folder, saver, Timer("1h"), EMAWeightAveraging(decay=0.5), **options)
    fitted.fit(Scripted(VALUES), rows(), rows(8))
    kept = {Path(path).name: round(float(score), 3) for path, score in saver.best_k_models.items()}
    return {"kept": kept, "best": Path(saver.best_model_path).name, "files": names(folder), "steps": fitted.global_step}


def stopped(folder: Path) -> int:
    """Rank 1 alone has a reason to stop."""
    stopper = EarlyStopping("val_loss", divergence_threshold=0.93, patience=99)
    fitted = trainer(folder, stopper, devices=2, strategy="ddp", max_epochs=4)
    fitted.fit(Scripted(VALUES), rows(), rows(8))
    return int(fitted.current_epoch)


def timed(folder: Path) -> int:
    """The clock is rank 0's, looked at every second batch."""
    timer = Timer("1h" if RANK else "0s")
    fitted = trainer(folder, timer, devices=2, strategy="ddp", max_epochs=4, log_every_n_steps=2)
    fitted.fit(Scripted(), rows())
    return int(fitted.global_step)


def swept(folder: Path) -> float:
    """Every rank sets the same learning rate."""
    net = Scripted(lr=9.0)
    finder = LearningRateFinder(1e-4, 1.0, 30)
    trainer(folder, finder, devices=2, strategy="ddp", max_epochs=1).fit(net, rows(56), rows(8))
    return net.lr


def main(folder: Path) -> None:
    """Write what this rank saw."""
    seen = {job.__name__: job(folder / job.__name__) for job in (saved, stopped, timed, swept)}
    (folder / f"rank{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
