"""What the tests run: train.py FOLDER ACCELERATOR DEVICES {NAME: OPTIONS}; leaves what came out in FOLDER/NAME."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "template" / "src" / "{{ package_name }}")]

import torch  # noqa: E402
from engine import Callback, seed_everything  # noqa: E402
from engine.callbacks import ModelCheckpoint  # noqa: E402
from torch import nn  # noqa: E402

from tests.engine.strategies.nets import weights  # noqa: E402
from tests.engine.toys import BoringModel, loader, quiet_trainer  # noqa: E402


class Net(BoringModel):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))  # type: ignore[assignment]


class Devices(Callback):
    """Notes how many devices a batch lies on."""

    found = 1

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert module.device.type == batch[0].device.type == trainer.strategy.root_device.type
        if batch[0].device.type == "xla":
            import torch_xla  # only here: the tests use this module on the CPU, too

            self.found = 2 if "devices=[2,1]" in torch_xla._XLAC._get_xla_sharding_spec(batch[0]) else 1


def train(folder: Path, accelerator: str, devices: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train, validate and predict; return weights, metrics and predictions on the host."""
    seed_everything(5)
    dropout, ckpt_path = options.pop("dropout", 0.0), options.pop("ckpt_path", None)
    noted = Devices()
    trainer = quiet_trainer(
        accelerator=accelerator,
        devices=devices,
        callbacks=[noted, ModelCheckpoint(folder, save_last=True)],
        enable_checkpointing=True,
        **{"max_epochs": 2, **options},
    )
    module = Net(dropout)
    trainer.fit(module, loader(48, 8, shuffle=True), loader(13, 4), ckpt_path=ckpt_path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    predictions = trainer.predict(module, loader(8, 4)) or []
    return {
        "weights": weights(module).cpu(),
        "metrics": metrics,
        "predictions": torch.cat(predictions).flatten().tolist(),
        "devices": noted.found,
    }


if __name__ == "__main__":
    for name, given in ast.literal_eval(sys.argv[4]).items():
        left = train(Path(sys.argv[1]) / name, sys.argv[2], int(sys.argv[3]), given)
        torch.save(left, Path(sys.argv[1]) / name / "left.pt")
