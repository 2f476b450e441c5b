"""Why a public name of lightning 2.6.6 is not in the engine: pattern (of `fnmatch`) -> reason; the first that fits."""

from __future__ import annotations

VENDOR = "A vendor's service; the engine is neutral."
HARDWARE = "Needs hardware or a library that we cannot test; pass your own plugin."
SEAM = "How the loops call a strategy is the engine's own, and smaller: `strategies.Strategy` documents it."
ARITHMETIC = "How the loops call a precision is the engine's own, and smaller: `plugins.Precision` documents it."
INTERNAL = "An internal step of the reference."
FORGE = "One accelerator is data here (`accelerators.Accelerator`), registered by one call; the engine has no lists."

FSDP2 = "FSDP2: `auto_wrap_policy`, `mixed_precision` and the rest are its own, as the class documents."

GAPS: dict[str, str] = {
    "accelerators.*": FORGE,
    "seed_everything": "Quiet unless asked.",
    "utilities.rank_zero_info": "The logger's own settings say where a line came from.",
    "utilities.rank_zero_only": "Other ranks get None.",
    "plugins.FSDPPrecision*": FSDP2,
    "strategies.FSDPStrategy()": FSDP2,
    "strategies.FSDPStrategy*": SEAM,
    "plugins.LayerSync*": "`Trainer(sync_batchnorm=True)` converts by torch's own function.",
    "plugins.TorchSyncBatchNorm*": "`Trainer(sync_batchnorm=True)` converts by torch's own function.",
    "LightningModule.to_torchscript": "TorchScript is deprecated in torch; `torch.export` takes its place.",
    "callbacks.BatchSizeFinder.setup": "`stage` is always given.",
    "callbacks.StochasticWeightAveraging()": "The same default, as text.",
    "Trainer()": VENDOR,
    "loggers.LitLogger*": VENDOR,
    "*.remove_ignored_hparams": INTERNAL,
    "LightningModule.configure_sharded_model": "Raises in Lightning 2 too; `configure_model` is its name.",
    "LightningModule.fabric": "There is no second trainer to hand the module to.",
    "LightningModule.device_mesh": "Of ModelParallelStrategy.",
    "LightningModule.to_tensorrt": VENDOR,
    "callbacks.ModelPruning*": "Rare; `torch.nn.utils.prune` in a hook of your own does it.",
    "callbacks.SpikeDetection*": "Rare; `EarlyStopping(check_finite=True)` and the event log find spikes.",
    "callbacks.LambdaCallback()": "The hooks are passed by name.",
    "callbacks.StochasticWeightAveraging.*": INTERNAL,
    "plugins.BitsandbytesPrecision*": HARDWARE,
    "plugins.TransformerEnginePrecision*": HARDWARE,
    "plugins.DeepSpeedPrecision*": HARDWARE,
    "plugins.XLA*": HARDWARE,
    "plugins.*Precision.*": ARITHMETIC,
    "plugins.TorchCheckpointIO.load_checkpoint": "None means the same: tensors go where the model is.",
    "profilers.XLAProfiler*": HARDWARE,
    "profilers.PyTorchProfiler.*": INTERNAL,
    "strategies.DeepSpeedStrategy*": HARDWARE,
    "strategies.ModelParallelStrategy*": "`FSDPStrategy` (FSDP2) shards; tensor parallelism is the model's.",
    "strategies.DDPStrategy()": "None means that it is found out: torchrun's processes are taken where they are.",
    "strategies.*": SEAM,
    "utilities.CombinedLoader.reset": INTERNAL,
    "utilities.GradClipAlgorithmType*": 'The words "norm" and "value".',
    "utilities.LightningEnum*": INTERNAL,
    "utilities.disable_possible_user_warnings": "There are no possible-user warnings to switch off.",
    "utilities.find_shared_parameters": "Needed on TPU with torch_xla before 2.0 only.",
    "utilities.set_shared_parameters": "Needed on TPU with torch_xla before 2.0 only.",
    "utilities.is_picklable": INTERNAL,
    "utilities.is_shared_filesystem": INTERNAL,
    "utilities.measure_flops": "`torch.utils.flop_counter.FlopCounterMode` does it.",
}
