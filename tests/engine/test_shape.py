"""The engine's shape: layers, lengths, frames, calls, docstrings, exported names, and what an import drags in.

The budgets stand at the top. One that hurts may be raised in the change that needs it, with a sentence of reason.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.calls import Step, watch_a_step
from tests.parity.framework import ENGINE_ROOT, load_framework, words

ENGINE = ENGINE_ROOT / "engine"

FRAMES = 8  # of ours, from Trainer.fit to optimizer.step
FILES = 3  # that those frames are in
CALLS = 60  # Python functions outside torch, per step
PATH_LINES = 200  # of code, to read on that path
PATH_FUNCTION_LINES = 40  # of code, the longest function there
FUNCTION_LINES = 60  # of code in its body, anywhere
NESTING = 3  # blocks within blocks
MODULE_LINES = 450
# Of code, as tinygrad counts (the habit these two come from): the docstrings and comments that the style guide asks
# for are no size to save on.
# Raised from the plan's 5,000 and 10,000. What the plan did not count: checkpoints that are verified and read without
# unpickling (sealed, inert, packing: 350), processes that start themselves and name the rank that failed (processes,
# launch, handover, agreement: 700), Slack with its transport (787), five loggers with a sender (1,170). And since:
# what MLflow has not taken waits on disk, is sent once, and outlives the process (_spool, _mlflow_run: 250); the
# preflight, which finds thirty kinds of mistakes and is mostly their sentences (275); positions in several loaders at
# once, generators that data sets own, every rank's own state, damaged checkpoints passed over, failed saves tried
# again, Slurm's requeue (270).
# FSDP2, and its checkpoints as folders that any number of processes reads (fsdp, sharded_file: 220).
# What programs of 1.x call on a Trainer: argparse, tune, old names of loaders, strategies, paths (trainer_legacy: 80);
# arguments that were taken without a word and did nothing are refused, loaders that give None are skipped (50).
# Loggers that fail and full disks cost no training (60, 20 of them here); callbacks that act as the reference's (40).
# Numbers and files go to MLflow by ways of their own; outages of days, spoilt files, deleted runs (_mlflow_left: 200).
# Messages: one warning a command, answers without an end, no address in anybody's warning (slack, webhook: 50).
# Resumes of metric objects, of epochs just begun and of workers that live on; 1.x's optimizer_step and clipping (90).
# A resume is exact with metric objects, loaders made anew, validation's generators; arrays in states come back (170).
# torch_xla and float8 (strategies.xla, precision: 110); kinds of devices that have one strategy, an environment
# for their launch, or a backend of their own, and what NCCL wrote down before it timed out (100); torchrun's last
# words as one sentence (strategies.agent: 20). Throughput on the bar, whose callback it was that failed (40).
CORE_LINES = 7_320  # layers 0 to 4
ENGINE_LINES = 14_270
DOCUMENTED = 0.98  # of public modules, classes and functions

# Imports go down only: a module may import those of its own layer (never in a circle) and of lower ones.
LAYERS: dict[int, list[str]] = {
    0: words(
        """errors lazy distributed seed progress precision results hooks durations checkpoint_file inert packing sealed
        states transfer history sharded_file"""
    ),
    1: words("dispatch hparams module datamodule optimizer position data profilers curves summary types acceleration"),
    2: words("strategies accelerators run reduction checkpoint signals settings metrics"),
    3: words("loading sharding step fit evaluate predict legacy"),
    4: words("session handover"),
    5: words("callbacks loggers"),
    6: words(
        """trainer trainer_legacy trainer_view trainer_services tuner defaults verify preflight aliases utilities
        plugins core checkpoint_async __init__ __main__"""
    ),
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
GUESTS = ("callbacks", "loggers")  # they know the trainer by its public names and import layers 0 and 1 only

HEAVY = words(
    """torchmetrics mlflow tensorboard tensorboardX wandb comet_ml rich tqdm matplotlib pandas requests typer pydantic
    yaml sklearn scipy transformers torchvision lightning lightning_fabric pytorch_lightning torch_xla google"""
)


def modules() -> list[Path]:
    return sorted(ENGINE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The name of the module or sub-package directly under the engine that a file belongs to."""
    return path.relative_to(ENGINE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return path.relative_to(ENGINE).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


# ---------------------------------------------------------------- layers


def own_imports(path: Path, node: ast.AST | None = None) -> Iterator[tuple[str, ast.ImportFrom]]:
    """The engine's parts that a file imports when it runs; what stands under TYPE_CHECKING is left out."""
    package = [*path.relative_to(ENGINE).parts[:-1]]
    for child in ast.iter_child_nodes(node or tree(path)):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and child.level:
            base = package[: len(package) - (child.level - 1)] + (child.module or "").split(".")
            base = [name for name in base if name]
            for name in [base[0]] if base else [alias.name for alias in child.names]:
                yield name, child
        yield from own_imports(path, child)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_has_a_layer(path: Path) -> None:
    assert part_of(path) in LAYER_OF, f"give {part_of(path)} a layer in this file"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    for name, node in own_imports(path):
        if name == part or name not in LAYER_OF:
            continue
        limit = 1 if part in GUESTS else LAYER_OF[part]
        assert LAYER_OF[name] <= limit, f"{name_of(path)}:{node.lineno} ({part}) imports {name}, a higher layer"


def test_no_imports_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in modules():
        names = {name for name, _ in own_imports(path)}
        edges.setdefault(part_of(path), set()).update(names - {part_of(path), "__init__"})
    done: set[str] = set()
    while ready := {part for part in edges if part not in done and edges[part] & set(edges) <= done}:
        done |= ready
    assert done == set(edges), f"in a circle: {sorted(set(edges) - done)}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_are_relative_and_at_the_top(path: Path) -> None:
    parsed = tree(path)
    for function in functions(path):
        if function.name == "__getattr__":  # a package that exports lazily
            continue
        inside = [n.lineno for n in ast.walk(function) if isinstance(n, ast.ImportFrom) and n.level]
        assert not inside, f"{name_of(path)}: lines {inside} import the engine's own modules inside {function.name}"
    for node in ast.walk(parsed):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not any(name.split(".")[0] == "engine" for name in names), f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_jinja(path: Path) -> None:
    text = path.read_text()
    assert not [mark for mark in ("{%", "{#", "{{ ") if mark in text]


# ---------------------------------------------------------------- lengths


def code_lines(node: ast.AST) -> set[int]:
    """Lines that hold code: no blanks, comments or docstrings."""
    lines: set[int] = set()
    docstrings = {id(d) for n in ast.walk(node) if (d := docstring_node(n)) is not None}
    for child in ast.walk(node):
        if isinstance(child, ast.stmt | ast.expr | ast.arg | ast.ExceptHandler) and id(child) not in docstrings:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                lines.add(child.lineno)
            elif isinstance(child, ast.Constant) and isinstance(child.value, str):
                lines |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
            else:
                lines |= {child.lineno, child.end_lineno or child.lineno}
    return lines - {n for d in docstring_spans(node) for n in d}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[int]:
    """Lines of code after the signature, which may hold the fifty arguments of a Trainer."""
    return {line for line in code_lines(function) if line >= function.body[0].lineno}


def docstring_node(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return first
    return None


def docstring_spans(node: ast.AST) -> Iterator[range]:
    for child in ast.walk(node):
        doc = docstring_node(child)
        if doc is not None:
            yield range(doc.lineno, doc.end_lineno + 1)  # type: ignore[attr-defined]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_functions_are_short_and_flat(path: Path) -> None:
    for function in functions(path):
        lines, depth = len(body_lines(function)), nesting(function)
        assert lines <= FUNCTION_LINES, f"{function.name} (line {function.lineno}) has {lines} lines of code"
        assert depth <= NESTING, f"{function.name} (line {function.lineno}) is nested {depth} deep"


BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """The deepest block within blocks; `elif` is no deeper than `if`, a function of its own starts anew."""
    deepest = depth
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_elif = isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If) and len(value) == 1
            deeper = isinstance(child, BLOCKS) and not is_elif
            deepest = max(deepest, nesting(child, depth + deeper))
    return deepest


def lines_of(parts: set[str]) -> int:
    return sum(len(code_lines(tree(path))) for path in modules() if part_of(path) in parts)


def test_the_core_is_small() -> None:
    assert lines_of({name for layer in range(5) for name in LAYERS[layer]}) <= CORE_LINES


def test_the_engine_is_small() -> None:
    assert lines_of(set(LAYER_OF)) <= ENGINE_LINES


# ---------------------------------------------------------------- the training path


@pytest.fixture(scope="module")
def step() -> Step:
    return watch_a_step()


def test_fit_reaches_the_optimizer_in_few_frames_and_files(step: Step) -> None:
    assert len(step.frames) <= FRAMES, step.describe()
    assert len({file for file, _, _ in step.frames}) <= FILES, step.describe()
    assert step.frames[0][2] == "fit", step.describe()


def test_a_step_makes_few_calls(step: Step) -> None:
    assert step.calls <= CALLS, step.describe()


def test_the_training_path_is_short_to_read(step: Step) -> None:
    lengths = {
        f"{Path(file).name}:{name}": len(code_lines(function_at(Path(file), line))) for file, line, name in step.frames
    }
    assert sum(lengths.values()) <= PATH_LINES, lengths
    assert max(lengths.values()) <= PATH_FUNCTION_LINES, lengths


def function_at(path: Path, line: int) -> ast.AST:
    """The innermost function that a line is in."""
    around = [f for f in functions(path) if f.lineno <= line <= (f.end_lineno or line)]
    return max(around, key=lambda f: f.lineno)


# ---------------------------------------------------------------- what is public


def public_things(path: Path) -> Iterator[tuple[str, bool]]:
    """Public modules, classes, functions and methods of a file, and whether each has a docstring."""
    parsed = tree(path)
    yield name_of(path), bool(ast.get_docstring(parsed))
    yield from _public_in(parsed, name_of(path))


def _public_in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, bool]]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        if any("overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in child.decorator_list):
            continue
        yield f"{prefix}:{child.name}", bool(ast.get_docstring(child))
        if isinstance(child, ast.ClassDef):
            yield from _public_in(child, f"{prefix}:{child.name}")


def test_public_things_are_documented() -> None:
    things = [thing for path in modules() for thing in public_things(path)]
    without = [name for name, documented in things if not documented]
    assert len(without) <= (1 - DOCUMENTED) * len(things), f"{len(without)} of {len(things)}:\n" + "\n".join(without)


def packages() -> list[str]:
    inits = (path.parent for path in modules() if path.name == "__init__.py")
    return [".".join(("engine", *folder.relative_to(ENGINE).parts)) for folder in inits]


@pytest.mark.parametrize("name", packages())
def test_exported_names_are_there(name: str) -> None:
    load_framework("engine")
    package = importlib.import_module(name)
    exported: Any = package.__all__
    assert len(exported) == len(set(exported)), "a name stands twice in __all__"
    assert not [n for n in exported if not hasattr(package, n)]
    assert set(exported) <= set(dir(package)), "dir() hides names of __all__"
    assert not [n for n in exported if n.startswith("_") and n != "__version__"]


# ---------------------------------------------------------------- what an import costs

FIT = """
import torch, engine
class Net(engine.LightningModule):
    def __init__(self):
        super().__init__(); self.l = torch.nn.Linear(2, 1)
    def training_step(self, batch, batch_idx):
        loss = self.l(batch).sum(); self.log("loss", loss); return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
engine.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
               enable_progress_bar=False, enable_model_summary=False).fit(
    Net(), torch.utils.data.DataLoader(torch.ones(4, 2)))
"""


@pytest.mark.parametrize("program", ["import engine", "import engine; engine.Trainer; engine.LightningModule", FIT])
def test_heavy_libraries_wait_until_they_are_used(program: str, tmp_path: Path) -> None:
    before, after = loaded("import torch", tmp_path), loaded(program, tmp_path)
    dragged = {name for name in after - before if name.split(".")[0] in HEAVY}
    assert not dragged, sorted(dragged)[:5]


def loaded(program: str, folder: Path) -> set[str]:
    """The modules that are loaded after `program` in a fresh interpreter."""
    report = "import json; print(json.dumps([*sys.modules]))"
    script = f"import sys; sys.path.insert(0, {str(ENGINE_ROOT)!r})\n{program}\n{report}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_torch_is_the_only_need() -> None:
    third_party = set()
    for path in modules():
        for node in tree(path).body:
            if isinstance(node, ast.Import):
                third_party |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                third_party.add((node.module or "").split(".")[0])
    assert third_party - set(sys.stdlib_module_names) <= {"torch", "__future__"}
