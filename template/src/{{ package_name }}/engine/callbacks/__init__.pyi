"""What type checkers see; at run time each name loads its module when it is first used."""

from .batch_size_finder import BatchSizeFinder as BatchSizeFinder
from .callback import Callback as Callback
from .checkpoint import Checkpoint as Checkpoint
from .device_stats_monitor import DeviceStatsMonitor as DeviceStatsMonitor
from .early_stopping import EarlyStopping as EarlyStopping
from .finetuning import BackboneFinetuning as BackboneFinetuning
from .finetuning import BaseFinetuning as BaseFinetuning
from .gradient_accumulation_scheduler import GradientAccumulationScheduler as GradientAccumulationScheduler
from .lambda_function import LambdaCallback as LambdaCallback
from .lr_finder import LearningRateFinder as LearningRateFinder
from .lr_monitor import LearningRateMonitor as LearningRateMonitor
from .model_checkpoint import ModelCheckpoint as ModelCheckpoint
from .model_summary import ModelSummary as ModelSummary
from .on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
from .prediction_writer import BasePredictionWriter as BasePredictionWriter
from .progress import ProgressBar as ProgressBar
from .progress import RichProgressBar as RichProgressBar
from .progress import TQDMProgressBar as TQDMProgressBar
from .rich_model_summary import RichModelSummary as RichModelSummary
from .stochastic_weight_avg import StochasticWeightAveraging as StochasticWeightAveraging
from .throughput_monitor import ThroughputMonitor as ThroughputMonitor
from .timer import Timer as Timer
from .weight_averaging import EMAWeightAveraging as EMAWeightAveraging
from .weight_averaging import WeightAveraging as WeightAveraging

__all__: list[str]
_MODULES: dict[str, str]
