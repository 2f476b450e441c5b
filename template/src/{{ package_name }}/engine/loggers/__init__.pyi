"""What type checkers see; at run time each name loads its module when it is first used."""

from .comet import CometLogger as CometLogger
from .csv_logs import CSVLogger as CSVLogger
from .event_log import EventLog as EventLog
from .logger import DummyLogger as DummyLogger
from .logger import Logger as Logger
from .mlflow import MLFlowLogger as MLFlowLogger
from .tensorboard import TensorBoardLogger as TensorBoardLogger
from .wandb import WandbLogger as WandbLogger

__all__: list[str]
_MODULES: dict[str, str]
