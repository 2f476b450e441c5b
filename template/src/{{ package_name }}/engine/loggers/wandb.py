"""Tracking with Weights & Biases.

Owns: one W&B run and what is sent to it. Does not own: the login (`wandb login` or WANDB_API_KEY), the sending (wandb's
own process).
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from ..distributed import rank_zero_only
from ..durations import counted
from ..errors import MisconfigurationException, require
from ..hooks import Callback
from .logger import Logger, new_checkpoints, plain, rank_zero_experiment, require_later, scalars

STEP = "trainer/global_step"


def _wandb() -> Any:
    return require("wandb", "wandb", "`WandbLogger`")


class WandbLogger(Logger):
    """Log to Weights & Biases; the x axis is `trainer/global_step`.

    Args:
        name: Name of the run; None: W&B makes one.
        save_dir: Directory of the local files.
        version: Id of a run to continue.
        offline: Write locally; `wandb sync` uploads later.
        dir: The same as `save_dir`.
        id: The same as `version`.
        anonymous: True: allow a run without an account.
        project: Project; None: WANDB_PROJECT, else "lightning_logs".
        log_model: True: upload the checkpoints that are left at the end; "all": each when it is written.
        experiment: A run that was started already.
        prefix: Put before every metric's name, with "-" between.
        checkpoint_name: Name of the model artifact; None: `model-<id of the run>`.
        add_file_policy: "mutable" copies a checkpoint before the upload, "immutable" does not.
        **kwargs: For `wandb.init`.

    Raises:
        MissingExtraError: wandb is not installed.
        MisconfigurationException: `offline` together with `log_model`.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: bool | Literal["all"] = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: Any,
    ) -> None:
        require_later("wandb", "wandb", "`WandbLogger`")
        if offline and log_model:
            raise MisconfigurationException(
                f"`WandbLogger(offline=True, log_model={log_model!r})`: an offline run cannot upload checkpoints. "
                "Set one of the two to False."
            )
        self._init: dict[str, Any] = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": os.fspath(save_dir or dir or "."),
            "id": version or id,
            "resume": "allow",
            **({"mode": "offline"} if offline else {}),
            **({"anonymous": "allow"} if anonymous else {}),
            **kwargs,
        }
        self._log_model = log_model
        self._run = experiment
        self._prefix = prefix
        self._checkpoint_name = checkpoint_name
        self._add_file_policy = add_file_policy
        self._seen: dict[str, float] = {}
        self._callbacks: dict[int, Callback] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None, "_callbacks": {}, "_init": {**self._init, "id": self.version}}

    @property
    def name(self) -> str | None:
        """The project (the run's own name is `logger.experiment.name`)."""
        return str(self._init["project"])

    @property
    def version(self) -> str | None:
        """Id of the run, or None before it is started."""
        run_id: str | None = self._run.id if self._run is not None else self._init["id"]
        return run_id

    @property
    def save_dir(self) -> str:
        """Directory of the local files."""
        return str(self._init["dir"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`, started when first used; a run already in progress in this process is taken over."""
        if self._run is None:
            wandb = _wandb()
            os.makedirs(self.save_dir, exist_ok=True)
            self._run = wandb.run if wandb.run is not None else wandb.init(**self._init)
            if not self._init.get("sync_tensorboard"):
                self._run.define_metric(STEP)
                self._run.define_metric("*", step_metric=STEP, step_sync=True)
        return self._run

    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int | str = 100, log_graph: bool = True
    ) -> None:
        """Record gradients or parameters ("gradients", "parameters", "all") every `log_freq` steps."""
        self.experiment.watch(model, log=log, log_freq=counted(log_freq, "log_freq", "batches"), log_graph=log_graph)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Put the hyper-parameters into the run's config."""
        self.experiment.config.update(plain(params or {}), allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of one step."""
        self._log(scalars(metrics, self._prefix, self.LOGGER_JOIN_CHAR), step)

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        if step is not None and not self._init.get("sync_tensorboard"):
            values = {**values, STEP: step}
        self.experiment.log(values)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Send a table of anything, texts too, given by `columns` and `data` or as a data frame."""
        self._log({key: _wandb().Table(columns=columns, data=data, dataframe=dataframe)}, step)

    def log_text(self, *args: Any, **kwargs: Any) -> None:
        """Send a table of texts; the arguments are those of `log_table`."""
        self.log_table(*args, **kwargs)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Send images: tensors, arrays, PIL images or paths; other arguments are lists of the same length."""
        self._log_media("Image", key, images, step, kwargs)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Send sounds: arrays or paths; other arguments are lists of the same length."""
        self._log_media("Audio", key, audios, step, kwargs)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Send videos: arrays or paths; other arguments are lists of the same length."""
        self._log_media("Video", key, videos, step, kwargs)

    def _log_media(
        self, kind: str, key: str, items: list[Any], step: int | None, options: dict[str, list[Any]]
    ) -> None:
        if not isinstance(items, list):
            raise TypeError(
                f"`log_{kind.lower()}({key!r}, ...)` got a `{type(items).__name__}`; give a list, `[item]`."
            )
        for name, values in options.items():
            if len(values) != len(items):
                raise ValueError(f"`{name}` has {len(values)} values for {len(items)} items; give one for each item.")
        make = getattr(_wandb(), kind)
        media = [make(item, **{name: values[i] for name, values in options.items()}) for i, item in enumerate(items)]
        self._log({key: media}, step)

    @rank_zero_only
    def log_artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """Upload a file with the run."""
        self.experiment.save(os.path.abspath(path), base_path=os.path.dirname(os.path.abspath(path)), policy="now")

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Declare that the run uses an artifact, and return it."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @staticmethod
    @rank_zero_only
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool = True,
    ) -> str:
        """Download an artifact and return its directory."""
        run = _wandb().run
        if run is not None and use_artifact:
            found = run.use_artifact(artifact)
        else:
            found = _wandb().Api().artifact(artifact, type=artifact_type)
        return str(found.download(root=None if save_dir is None else os.fspath(save_dir)))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Callback) -> None:
        """Upload the new files with `log_model="all"`; with True, remember the callback until the end."""
        if self._log_model == "all" or (self._log_model and getattr(checkpoint_callback, "save_top_k", 1) == -1):
            self._upload(checkpoint_callback)
        elif self._log_model:
            self._callbacks[id(checkpoint_callback)] = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints that are left; the run stays open for `test`, and ends with the process."""
        if status == "success" and self._run is not None:
            for callback in self._callbacks.values():
                self._upload(callback)

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id."""
        return {"id": self.version} if self.version else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run that wrote the checkpoint, unless another was asked for or begun."""
        self._init["id"] = self._init["id"] or state_dict.get("id")

    def _upload(self, callback: Callback) -> None:
        for file in new_checkpoints(callback, self._seen):
            about = {"score": file.score, "original_filename": os.path.basename(file.path)}
            settings = {key: plain(getattr(callback, key)) for key in ("monitor", "mode") if hasattr(callback, key)}
            name = self._checkpoint_name or f"model-{self.experiment.id}"
            artifact = _wandb().Artifact(name=name, type="model", metadata={**about, **settings})
            if os.path.isdir(file.path):
                artifact.add_dir(file.path, policy=self._add_file_policy)
            else:
                artifact.add_file(file.path, name="model.ckpt", policy=self._add_file_policy)
            aliases = ["latest", "best"] if file.alias == "best" else ["latest"]
            self.experiment.log_artifact(artifact, aliases=aliases)
