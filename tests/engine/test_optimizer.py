"""The shapes that `configure_optimizers` may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.errors import MisconfigurationException
from engine.optimizer import parse_optimizers
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from tests.engine.toys import BoringModel, loader, quiet_trainer

FIRST, SECOND = (torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(2))
DECAY, OTHER = ExponentialLR(FIRST, 0.5), ExponentialLR(SECOND, 0.5)
PLATEAU = ReduceLROnPlateau(FIRST)


@pytest.mark.parametrize(
    ("returned", "optimizers", "schedulers"),
    [
        (FIRST, [FIRST], []),
        ([FIRST, SECOND], [FIRST, SECOND], []),
        ((FIRST,), [FIRST], []),
        (([FIRST], [DECAY]), [FIRST], [DECAY]),
        (([FIRST], DECAY), [FIRST], [DECAY]),
        (([FIRST, SECOND], [DECAY, {"scheduler": OTHER}]), [FIRST, SECOND], [DECAY, OTHER]),
        (([FIRST], []), [FIRST], []),
        ({"optimizer": FIRST}, [FIRST], []),
        ({"optimizer": FIRST, "lr_scheduler": None}, [FIRST], []),
        ({"optimizer": FIRST, "lr_scheduler": DECAY}, [FIRST], [DECAY]),
        ({"optimizer": FIRST, "lr_scheduler": [DECAY, {"scheduler": DECAY}]}, [FIRST], [DECAY, DECAY]),
        ([{"optimizer": FIRST, "lr_scheduler": DECAY}, {"optimizer": SECOND}], [FIRST, SECOND], [DECAY]),
    ],
)  # fmt: skip
def test_every_shape_is_taken_apart_the_same_way(returned: Any, optimizers: list[Any], schedulers: list[Any]) -> None:
    found, configs, frequencies = parse_optimizers(returned, automatic=True, custom_scheduler_step=False)
    assert found == optimizers
    assert [config.scheduler for config in configs] == schedulers
    assert frequencies == []


def test_the_keys_of_a_schedulers_dict_are_its_settings() -> None:
    given = {"scheduler": DECAY, "interval": "step", "frequency": 3, "name": "mine", "strict": False}
    _, (config,), _ = parse_optimizers(([FIRST], [given]), automatic=True, custom_scheduler_step=False)
    assert (config.interval, config.frequency, config.name, config.strict) == ("step", 3, "mine", False)


def test_the_metric_may_stand_beside_the_scheduler_or_in_its_dict() -> None:
    plateaus = [PLATEAU, {"scheduler": PLATEAU, "monitor": "inner"}]
    given = {"optimizer": FIRST, "lr_scheduler": plateaus, "monitor": "outer"}
    _, configs, _ = parse_optimizers(given, automatic=True, custom_scheduler_step=False)
    assert [(config.monitor, config.reduce_on_plateau) for config in configs] == [("outer", True), ("inner", True)]


@pytest.mark.parametrize("monitor", [None, ""])
def test_a_plateau_scheduler_without_a_metrics_name_is_refused(monitor: str | None) -> None:
    given = {"optimizer": FIRST, "lr_scheduler": PLATEAU, "monitor": monitor}
    with pytest.raises(MisconfigurationException, match="'monitor': 'val_loss'"):
        parse_optimizers(given, automatic=True, custom_scheduler_step=False)


def test_optimizers_take_turns_only_where_there_are_several() -> None:
    given = [{"optimizer": FIRST, "frequency": 1}, {"optimizer": SECOND, "frequency": 4}]
    assert parse_optimizers(given, automatic=True, custom_scheduler_step=False)[2] == [1, 4]
    assert parse_optimizers(given[1:], automatic=True, custom_scheduler_step=False)[2] == []


@pytest.mark.parametrize(
    "returned", ["sgd", [FIRST, "sgd"], {"lr_scheduler": DECAY}, ([FIRST], [{"interval": "step"}])]
)
def test_what_is_none_of_them_is_refused(returned: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"Accepted|Known keys"):
        parse_optimizers(returned, automatic=True, custom_scheduler_step=False)


def test_a_list_with_no_scheduler_in_it_is_refused_as_one() -> None:
    with pytest.raises(TypeError, match="`NoneType`"):
        parse_optimizers({"optimizer": FIRST, "lr_scheduler": [None]}, automatic=True, custom_scheduler_step=False)


@pytest.mark.parametrize("wrapped", [lambda wrapper: wrapper, lambda wrapper: [wrapper]])
def test_an_optimizer_that_the_engine_had_wrapped_is_taken_as_itself(wrapped: Callable[[Any], Any]) -> None:
    class Twice(BoringModel):
        def configure_optimizers(self) -> Any:
            return wrapped(earlier)

    model = BoringModel()
    quiet_trainer().fit(model, loader())
    earlier = model.optimizers()
    again = Twice()
    quiet_trainer().fit(again, loader())
    assert again.optimizers(use_pl_optimizer=False) is earlier.optimizer
