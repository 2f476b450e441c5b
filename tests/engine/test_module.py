"""What a module says of itself, and where it may say so."""

from __future__ import annotations

import torch

from tests.engine.toys import BoringModel


def test_settings_may_stand_in_the_class() -> None:
    class Mine(BoringModel):
        automatic_optimization = False
        strict_loading = False
        example_input_array = torch.ones(2, 4)

    class Changed(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True

    assert (Mine().automatic_optimization, Mine().strict_loading) == (False, False)
    assert Mine().example_input_array.shape == (2, 4)
    assert Changed().automatic_optimization
    assert (BoringModel().automatic_optimization, BoringModel().strict_loading) == (True, True)
    assert BoringModel().example_input_array is None
