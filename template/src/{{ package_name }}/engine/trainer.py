"""`Trainer`: the settings of a run, and its five calls.

Owns: arguments, defaults and the public methods. Does not own: what happens in a call (`session` and the loops).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from . import settings
from .acceleration import compile_options
from .checkpoint import resolve
from .datamodule import LightningDataModule
from .defaults import default_callbacks, default_loggers
from .errors import EndsAtCaller, MisconfigurationException, _TunerExitException
from .evaluate import evaluation
from .fit import fit as run_fit
from .history import History
from .hooks import Callback
from .lazy import submodule
from .legacy import accepts_old_names
from .metrics import CurrentMetrics
from .precision import select_precision
from .predict import predict as run_predict
from .predict import predictions
from .preflight import preflight as watched
from .preflight import select_checks
from .profilers import Profiler, select_profiler
from .progress import FitProgress
from .run import Run
from .session import session
from .signals import SignalWatch
from .states import TrainerFn, TrainerState
from .strategies import Strategy, select_strategy
from .summary import results_table
from .trainer_legacy import OldCalls, takes_old
from .trainer_services import TrainerServices

__path__: list[str] = []  # `trainer.states` and `trainer.trainer` are paths of the reference framework (`aliases`).
__getattr__ = functools.partial(submodule, __name__, offered=("Trainer",))


class Trainer(OldCalls, TrainerServices):
    """Trains, evaluates and predicts with a `LightningModule`.

    Every argument can also come from the environment, as `PL_TRAINER_MAX_EPOCHS=3`; an argument given in code wins.
    The names of Lightning 1.x (`gpus=2`) are translated, with a notice. Lengths may be text: "10ep" where epochs are
    counted, "500ba" where steps or batches are.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda", "mps", "tpu", or an `Accelerator`.
        devices: A number, -1 for all, a list of indices, "0,2", or "auto". For cpu: processes.
        strategy: "auto" (one process for one device, else "ddp"), a name of `STRATEGIES`, or a `Strategy`.
        num_nodes: Machines that take part.
        precision: "32-true" (default), "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "float8-mixed",
            or 16, 32, 64, "bf16".
        logger: True or None: a default one; False: none; a logger or a list.
        callbacks: One or a list.
        fast_dev_run: True or n: run n (1) batches of everything, write nothing.
        max_epochs: -1: no limit. Default: 1000, or none when `max_steps` or `max_time` limits.
        min_epochs: Epochs before anything may stop early.
        max_steps: Optimizer steps, -1: no limit.
        min_steps: Steps before anything may stop early.
        max_time: "DD:HH:MM:SS", "1h30m", a timedelta, or a dict of its arguments.
        limit_train_batches: A number of batches, or a share of them, of each epoch; 0 turns training off.
        limit_val_batches: Likewise for validation.
        limit_test_batches: Likewise for test.
        limit_predict_batches: Likewise for prediction.
        overfit_batches: Train and validate on so few batches, in order.
        val_check_interval: Validate after this share of an epoch, after so many batches, or so much time. Default: 1.0.
        check_val_every_n_epoch: Validate in every n-th epoch; None: count batches across epochs.
        num_sanity_val_steps: Validation batches before training; -1: all, 0: none.
        log_every_n_steps: Loggers write every so many steps, and at the first and last of each epoch; 0: never.
        enable_checkpointing: Add a `ModelCheckpoint` when there is none. Default: True.
        enable_progress_bar: Add a progress bar when there is none. Default: True.
        enable_model_summary: Print a summary of the module. Default: True.
        accumulate_grad_batches: Batches whose gradients are averaged before each step.
        gradient_clip_val: Largest norm (or value) of the gradients; None: not clipped.
        gradient_clip_algorithm: "norm" (default) or "value".
        deterministic: True or "warn": deterministic algorithms only.
        benchmark: cuDNN's benchmark mode.
        matmul_precision: Of float32 products: "highest", "high" (TF32 where the device has it) or "medium"; for the
            whole process. None: as it is.
        inference_mode: Evaluate under `torch.inference_mode` rather than `no_grad`.
        use_distributed_sampler: Split the loaders over the processes.
        profiler: "simple", "advanced", "pytorch", or a `Profiler`.
        detect_anomaly: Autograd's anomaly detection, which is slow.
        barebones: Turn off everything that is not training, to measure.
        plugins: A precision or a checkpoint IO object, or a list.
        sync_batchnorm: Synchronise batch norm over processes.
        reload_dataloaders_every_n_epochs: Ask for the loaders anew every so many epochs.
        default_root_dir: Where files go. Default: the working directory.
        enable_autolog_hparams: Send hyper-parameters to the loggers.
        compile: True, a mode or arguments of `torch.compile`: compile the module's forward pass; "step": all of
            `training_step`. "reduce-overhead" records CUDA graphs, for small batches.
        preflight: False, or a dict such as {"gradients": False}, turns checks for common mistakes off;
            `preflight.CHECKS` lists them.
        parity: "lightning": behave as the reference framework also where this engine differs on purpose.

    Raises:
        MisconfigurationException: An argument is not accepted, or clashes with another.
    """

    @accepts_old_names
    def __init__(
        self,
        *,
        accelerator: Any = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: Any = None,
        logger: Any = None,
        callbacks: list[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | str | None = None,
        min_epochs: int | str | None = None,
        max_steps: int | str = -1,
        min_steps: int | str | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | str | None = None,
        limit_val_batches: int | float | str | None = None,
        limit_test_batches: int | float | str | None = None,
        limit_predict_batches: int | float | str | None = None,
        overfit_batches: int | float | str = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | str | None = 1,
        num_sanity_val_steps: int | str | None = None,
        log_every_n_steps: int | str | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int | str = 0,
        default_root_dir: str | Path | None = None,
        enable_autolog_hparams: bool = True,
        matmul_precision: str | None = None,
        compile: bool | str | dict[str, Any] = False,
        preflight: bool | dict[str, bool] = True,
        parity: str | None = None,
    ) -> None:
        if parity not in (None, "lightning"):
            raise MisconfigurationException(f"`Trainer(parity={parity!r})`: accepted are None and 'lightning'.")
        self.parity = parity == "lightning"
        self.barebones = barebones
        if barebones:
            settings.check_barebones(locals())
            enable_checkpointing = enable_progress_bar = enable_model_summary = logger = False
            log_every_n_steps = num_sanity_val_steps = 0

        plugins = settings.plugins(plugins)
        self.num_nodes = settings.whole("num_nodes", num_nodes, 1, "from 1")
        self.strategy = select_strategy(
            strategy,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            checkpoint_io=next((plugin for plugin in plugins if hasattr(plugin, "save_checkpoint")), None),
        )
        own_precision = next((plugin for plugin in plugins if hasattr(plugin, "forward_context")), None)
        self.precision_plugin = own_precision or select_precision(precision, self.strategy.root_device.type)
        vars(self).update(
            settings.lengths(max_epochs, min_epochs, max_steps, min_steps, max_time),
            **settings.batches(
                (limit_train_batches, limit_val_batches, limit_test_batches, limit_predict_batches),
                overfit=overfit_batches,
                sanity_steps=num_sanity_val_steps,
                log_every=log_every_n_steps,
                interval=val_check_interval,
                every_n_epoch=check_val_every_n_epoch,
            ),
            **settings.optimisation(accumulate_grad_batches, gradient_clip_val, gradient_clip_algorithm),
        )
        settings.set_determinism(deterministic, benchmark)
        settings.set_matmul_precision(matmul_precision)
        self.compile_options = compile_options(compile)
        self.preflight = select_checks(preflight, only_hooks=self.parity or barebones)
        self.inference_mode = inference_mode and self.strategy.has_inference_mode
        self.use_distributed_sampler = use_distributed_sampler
        self.sync_batchnorm = sync_batchnorm
        self.detect_anomaly = detect_anomaly
        self.train_mode: str = self._old_arguments.pop("multiple_trainloader_mode", "max_size_cycle")
        self.reload_dataloaders_every_n_epochs = settings.reload_every(reload_dataloaders_every_n_epochs)
        self.enable_autolog_hparams = enable_autolog_hparams
        self.default_root_dir = str(Path.cwd() if default_root_dir is None else Path(default_root_dir).expanduser())
        self.profiler = select_profiler(profiler)
        self.fast_dev_run = fast_dev_run
        if fast_dev_run:
            vars(self).update(settings.fast_dev_run(fast_dev_run, self.overfit_batches))
        self.loggers = default_loggers(logger, self.default_root_dir, dummy=bool(fast_dev_run))
        self.callbacks = default_callbacks(
            callbacks,
            checkpointing=enable_checkpointing,
            dry_run=bool(fast_dev_run),
            bar=enable_progress_bar,
            summary=enable_model_summary,
            max_time=max_time,
            old=self._old_arguments,
        )
        self.check_callbacks()
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.state = TrainerState()
        self.progress = FitProgress()
        self.metrics = CurrentMetrics()
        self.signals = SignalWatch()
        self.should_stop = self.interrupted = False
        self._ckpt_path: str | Path | None = None
        self._ckpt_path_is_set = False
        self.run = None
        self.datamodule: Any = None
        self.data_source: Any = None
        self.given_loaders: dict[str, Any] = {}
        self.loaders = {}
        self.current_loaders = None
        self.history_rows, self.predictions = [], []
        self.epoch_batch_indices, self.current_batch_indices = [], []

    # The five calls.

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> History:
        """Train.

        Args:
            model: The module.
            train_dataloaders: A loader, a nest of loaders, or a data module. Default: the module's own.
            val_dataloaders: A loader or a list of them.
            datamodule: Instead of loaders.
            ckpt_path: Resume from this file, "best", "last" or "hpc". Default: start anew.
            weights_only: False allows arbitrary pickle in that file; only for files you trust.

        Returns:
            What was logged: metric name -> values by epoch; pandas and matplotlib take it as it is.
        """
        with EndsAtCaller():
            self.should_stop = False
            self.signals = SignalWatch()
            self._take_data(datamodule, train=train_dataloaders, val=val_dataloaders)
            ckpt_path = self._old_arguments.pop("resume_from_checkpoint", None) if ckpt_path is None else ckpt_path
            if self.strategy.is_distributed:
                self.strategy.launch(self, "_fit", model, ckpt_path, weights_only)
            else:
                self._fit(model, ckpt_path, weights_only)
            return self.history

    def _fit(self, model: Any, ckpt_path: Any, weights_only: bool | None) -> None:
        self._ckpt_path = resolve(self, "fit", ckpt_path, model_given=True)
        with contextlib.suppress(_TunerExitException), self._session(TrainerFn.FITTING, model, weights_only) as run:
            self.tune()
            anomalies = torch.autograd.set_detect_anomaly(True) if self.detect_anomaly else contextlib.nullcontext()
            with watched(run, self.preflight), anomalies:
                run_fit(run)

    @takes_old("val_dataloaders", "dataloaders")
    def validate(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate on the validation data.

        Args:
            model: The module. Default: the one of the last call, with the weights of the best checkpoint if there is
                one.
            dataloaders: Instead of the module's `val_dataloader`.
            ckpt_path: Take the weights from this file, "best" or "last". Default: those in memory.
            verbose: Print a table.
            datamodule: Instead of loaders.
            weights_only: False allows arbitrary pickle in that file; only for files you trust.

        Returns:
            For each loader the logged metrics.
        """
        return self._evaluate(TrainerFn.VALIDATING, model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    @takes_old("test_dataloaders", "dataloaders")
    def test(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate on the test data; arguments and result are those of `validate`."""
        return self._evaluate(TrainerFn.TESTING, model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def _evaluate(
        self, fn: TrainerFn, model: Any, loaders: Any, ckpt: Any, verbose: bool, datamodule: Any, weights_only: Any
    ) -> list[dict[str, float]]:
        with EndsAtCaller():
            stage = "val" if fn is TrainerFn.VALIDATING else "test"
            module = self._begin(fn, model, ckpt, datamodule, **{stage: loaders})
            results: list[dict[str, float]] = self.strategy.launch(self, "_call", module, fn, weights_only, evaluation)
            if verbose and self.is_global_zero and results:
                self.print(results_table(results))
            return results

    def _call(
        self, module: Any, fn: TrainerFn, weights_only: bool | None, loop: Callable[[Run], list[Any]]
    ) -> list[Any]:
        with contextlib.suppress(_TunerExitException), self._session(fn, module, weights_only) as run:
            return loop(run)
        return []

    def predict(
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> list[Any]:
        """Predict.

        Args:
            model: The module. Default: as in `validate`.
            dataloaders: Instead of the module's `predict_dataloader`.
            datamodule: Instead of loaders.
            return_predictions: False keeps nothing, for data larger than memory. Default: True.
            ckpt_path: As in `validate`.
            weights_only: As in `validate`.

        Returns:
            What `predict_step` returned, batch by batch, on the host; with several loaders one list for each.
        """
        with EndsAtCaller():
            module = self._begin(TrainerFn.PREDICTING, model, ckpt_path, datamodule, predict=dataloaders)
            loop = functools.partial(run_predict, keep=return_predictions is not False)
            found: list[Any] = self.strategy.launch(self, "_call", module, TrainerFn.PREDICTING, weights_only, loop)
            return found

    def predict_iter(self, model: Any = None, dataloaders: Any = None, datamodule: Any = None) -> Iterator[Any]:
        """Yield predictions batch by batch, keeping none; arguments are those of `predict`."""
        model = self.lightning_module if model is None else model  # with the weights that it has
        module = self._begin(TrainerFn.PREDICTING, model, None, datamodule, predict=dataloaders)
        with contextlib.suppress(_TunerExitException), self._session(TrainerFn.PREDICTING, module, None) as run:
            for _, output in predictions(run):
                yield output

    # What the loops and callbacks ask for.

    def _session(self, fn: TrainerFn, module: Any, weights_only: bool | None) -> contextlib.AbstractContextManager[Any]:
        return session(self, fn, module, self.datamodule, ckpt_path=self.ckpt_path, weights_only=weights_only)

    def _begin(self, fn: TrainerFn, model: Any, ckpt: Any, datamodule: Any, **loaders: Any) -> Any:
        """Take what a call was given, and return its module: that of the last call, if it was given none."""
        self._take_data(datamodule, **loaders)
        module = self.lightning_module if model is None else model
        if module is None:
            raise TypeError(
                f"`trainer.{fn.value}()` was called without a model, and no earlier call had one. Pass it: "
                f"`trainer.{fn.value}(model)`."
            )
        self._ckpt_path = resolve(self, fn.value, ckpt, model_given=model is not None)
        return module

    def _take_data(self, datamodule: Any, **loaders: Any) -> None:
        given = {stage: value for stage, value in loaders.items() if value is not None}
        for stage, value in list(given.items()):
            if isinstance(value, LightningDataModule):
                datamodule, _ = value, given.pop(stage)
        if datamodule is not None and given:
            raise MisconfigurationException(
                "Both loaders and a data module were passed. Pass one of them: `trainer.fit(model, loader)` or "
                "`trainer.fit(model, datamodule=...)`."
            )
        self.given_loaders = given
        if datamodule is not None or (given and not self.parity):
            self.datamodule = datamodule  # else: that of the last call, if there was one
        # The reference sets such a data module up and tears it down, but asks it for no loader and no transfer.
        self.data_source = datamodule if self.parity else self.datamodule

    @property
    def history(self) -> History:
        """What was sent to loggers so far: metric name -> values by epoch."""
        return History(self.history_rows)
