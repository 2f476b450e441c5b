"""What a model consists of, and the closing table."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from engine.summary import ModelSummary, get_human_readable_count, results_table, rich_table, summarize
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512), nn.Dropout(0.5))
        self.head = nn.Linear(512, 10)
        self.scale = nn.Parameter(torch.ones(7))
        self.loss = nn.CrossEntropyLoss()
        self.example_input_array: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x))


def test_counts_types_and_modes() -> None:
    model = Net()
    model.head.requires_grad_(False)
    model.head.eval()
    summary = summarize(model)
    assert summary.layer_names == ["net", "head", "loss"]
    assert summary.layer_types == ["Sequential", "Linear", "CrossEntropyLoss"]
    assert summary.param_nums == [256 * 512 + 512 + 1024, 5130, 0]
    assert summary.training_modes == [True, False, True]
    assert summary.total_training_modes == {"train": 5, "eval": 1}
    assert summary.total_parameters == sum(p.numel() for p in model.parameters())
    assert summary.trainable_parameters == summary.total_parameters - 5130
    assert summary.model_size == pytest.approx(summary.total_parameters * 4e-6)
    assert ModelSummary(model.double()).model_size == pytest.approx(summary.total_parameters * 8e-6)
    text = str(summary)
    assert "other params | n/a" in text
    assert "1 of 6 modules in eval mode" in text


@pytest.mark.parametrize(("depth", "rows"), [(0, 0), (1, 3), (2, 6), (-1, 6)])
def test_depth(depth: int, rows: int) -> None:
    assert len(ModelSummary(Net(), depth).layer_names) == rows


def test_a_depth_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        ModelSummary(Net(), -2)


def test_sizes_and_flops_by_the_example_leave_nothing_behind() -> None:
    model = Net()
    model.example_input_array = torch.randn(4, 256)
    model.head.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    summary = ModelSummary(model, -1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (model.net.training, model.head.training) == (True, False)
    assert not any(module._forward_hooks for module in model.modules())
    sizes = dict(zip(summary.layer_names, zip(summary.in_sizes, summary.out_sizes, strict=True), strict=True))
    assert sizes["net"] == ([4, 256], [4, 512])
    assert sizes["head"] == ([4, 512], [4, 10])
    assert sizes["loss"] == ("?", "?")
    assert summary.total_flops == 2 * 4 * (256 * 512 + 512 * 10)
    assert summary.flop_counts["head"] == 2 * 4 * 512 * 10


def test_an_example_that_does_not_fit_is_no_error() -> None:
    model = Net()
    model.example_input_array = torch.randn(4, 3)
    model.head.eval()
    summary = ModelSummary(model)
    assert summary.in_sizes == ["?", "?", "?"] or summary.in_sizes[0] == [4, 3]
    assert (model.net.training, model.head.training) == (True, False)


def test_lazy_layers_count_nothing_and_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(10), nn.Linear(10, 2))
    model.example_input_array = torch.zeros(1, 3)
    summary = ModelSummary(model)
    assert summary.param_nums == [0, 22]
    assert isinstance(model[0], nn.LazyLinear)


def test_shared_parameters_are_counted_once_in_the_total() -> None:
    layer = nn.Linear(3, 3)
    assert ModelSummary(nn.ModuleDict({"a": layer, "b": layer})).total_parameters == 12


def test_one_line_fits_the_width() -> None:
    summary = summarize(Net())
    assert summary.line(40) == "Net: 138 K parameters, all trainable, 0.551 MB"
    assert summary.line(100) == "Net: 138 K parameters, all trainable, 0.551 MB · net 133 K · head 5.1 K"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 K"), (99_940, "99.9 K"), (999_900, "1.0 M"), (2_000_000_000_000, "2.0 T")],
)
def test_readable_counts(number: int, text: str) -> None:
    assert get_human_readable_count(number) == text


def test_results_of_several_loaders_side_by_side() -> None:
    table = results_table(
        [{"loss/dataloader_idx_0": 1e-9, "acc": 0.5}, {"loss/dataloader_idx_1": float("nan")}], "test"
    )
    assert table.splitlines() == [
        "test | loader 0 | loader 1",
        "loss | 1e-09    | nan",
        "acc  | 0.5000   |",
    ]


def test_no_results_no_table() -> None:
    assert results_table([]) == ""
    assert results_table([{}]) == ""


def test_results_are_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    text = results_table([{"test_acc": 0.984375}])
    assert "\x1b[" in text
    assert "0.9844" in text
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in results_table([{"test_acc": 0.984375}])


def test_rich_table_aligns_and_closes_with_the_footer() -> None:
    pytest.importorskip("rich")
    lines = rich_table({"Name": ["a", "bb"], "Params": ["1", "222"]}, right=["Params"], footer="end").splitlines()
    assert lines[-1] == "end"
    assert lines[2].rindex("1") == lines[3].rindex("2")
