"""`LightningDataModule`: data sets and loaders, apart from the model.

Owns: the public surface of the data module. Does not own: how loaders are walked (`data`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .hooks import DataHooks
from .hparams import HyperparametersMixin, LoadableMixin


class LightningDataModule(DataHooks, HyperparametersMixin, LoadableMixin):
    """Where the data comes from, for every stage.

    Write `setup` and the `*_dataloader` methods that you need; `prepare_data` downloads once per node.

    Attributes:
        name: Shown in logs.
        trainer: The Trainer that uses it, or None.
    """

    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"
    name: str | None = None
    trainer: Any = None

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> LightningDataModule:
        """Make a data module of data sets, sequences or mappings of them.

        Args:
            train_dataset: Shuffled, unless iterable.
            val_dataset: One, or a sequence of several.
            test_dataset: Likewise.
            predict_dataset: Likewise.
            batch_size: Rows of a batch.
            num_workers: Loader processes.
            **datamodule_kwargs: Go to the constructor.
        """

        def loader(dataset: Any, shuffle: bool = False) -> DataLoader[Any]:
            shuffle = shuffle and not isinstance(dataset, IterableDataset)
            pins = torch.accelerator.is_available()
            return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=num_workers, pin_memory=pins)

        def loaders(datasets: Any, shuffle: bool = False) -> Any:
            if isinstance(datasets, Mapping):
                return {name: loader(dataset, shuffle) for name, dataset in datasets.items()}
            if isinstance(datasets, Sequence) and not isinstance(datasets, Dataset):
                return [loader(dataset, shuffle) for dataset in datasets]
            return loader(datasets, shuffle)

        instance = cls(**datamodule_kwargs)
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for stage, datasets in given.items():
            if datasets is not None:
                make = lambda datasets=datasets, shuffle=stage == "train": loaders(datasets, shuffle)  # noqa: E731
                setattr(instance, f"{stage}_dataloader", make)
        return instance

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of this data module."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def on_exception(self, exception: BaseException) -> None:
        """Run when anything in a run raises, before teardown."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trainer out of pickles and copies."""
        return {k: v for k, v in self.__dict__.items() if k != "trainer"}
