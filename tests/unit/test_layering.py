"""How the code is laid out: who may import whom, what stays free of MindSpore, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mindplm"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = [*SOURCES, *sorted((ROOT / "tools").rglob("*.py"))]
MAX_FILE, MAX_FUNCTION = 400, 60

# Group -> groups that it may import from, beside itself and `errors`.
GROUPS = {
    "errors": "",
    "assets": "",
    "files": "",
    "config": "",
    "nn": "",
    "weights": "files",
    "tokenizers": "assets",
    "runtime": "config",
    "models": "config nn weights files",
    "data": "config runtime tokenizers assets files weights",
    "families": "config models data tokenizers assets",
    "checkpoint": "config runtime families weights files",
}
_BELOW = "assets files config nn weights tokenizers runtime models data families checkpoint"
GROUPS.update(convert=_BELOW, generate=_BELOW, evaluate=_BELOW, train=_BELOW + " evaluate")
GROUPS.update(
    measure=_BELOW + " evaluate generate", finetune=_BELOW + " evaluate train generate measure"
)
GROUPS.update(launch="config families data checkpoint", cli="", __main__="cli", __init__="")
GROUPS["fill"] = _BELOW
GROUPS["memory"] = "config families"
GROUPS.update(integrations=" ".join(GROUPS))
# Modules at the top level that belong to a group of another name.
ALIASES = {
    "strict": "config",
    "graph_cache": "runtime",
    "yaml_io": "config",
    "tensors": "files",
    "config_data": "config",
    "config_generate": "config",
    "config_train": "config",
    "config_lora": "config",
    "config_head": "config",
    "config_parallel": "config",
    "shards": "config",
    "slices": "config",
    "config_shape": "config",
    "config_task": "config",
    "config_slots": "config",
    "config_finetune": "config",
    "config_distill": "config",
    "train_state": "checkpoint",
    "merged": "checkpoint",
    "cli_finetune": "cli",
    "adapters": "checkpoint",
    "parts": "checkpoint",
    "text": "tokenizers",
    "cli_write": "cli",
    "cli_score": "cli",
    "cli_convert": "cli",
    "cli_fill": "cli",
    "cli_measure": "cli",
    "launch_job": "launch",
    "family": "families",
}
# Importing these, and so all that they import, must not load MindSpore.
FREE = [
    "config", "strict", "yaml_io", "errors", "families", "files", "tensors", "checkpoint", "cli",
    "adapters", "convert", "memory", "slices",
    "assets", "tokenizers", "weights", "data.tasks", "data.cpm_bee", "data.packing",
    "data.sources", "data.shapes", "config_task", "shards", "models.cpm_bee.plan",
]  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def group_of(module: str) -> str:
    parts = module.split(".")
    first = parts[1] if len(parts) > 1 else "__init__"
    return ALIASES.get(first, first)


def is_module(name: str) -> bool:
    base = ROOT.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or base.is_dir()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module of ours) of every import, wherever it stands."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            names = [
                f"{module}.{a.name}" if is_module(f"{module}.{a.name}") else module
                for a in node.names
            ]
        for name in names:
            if name.split(".")[0] == "mindplm":
                yield node.lineno, name


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    module = name_of(path)
    group = group_of(module)
    assert group in GROUPS, f"{module}: give it a place in GROUPS"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if group == "cli":  # may import everything, but inside its functions
        top = {id(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
        heavy = [
            name
            for node in tree.body
            if id(node) in top
            for _, name in imports(node)
            if name not in ("mindplm", "mindplm.errors")
        ]
        assert not heavy, f"{module} imports {heavy} at its top"
        return
    allowed = {group, "errors", *GROUPS[group].split()}
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports(tree)
        if name != "mindplm" and group_of(name) not in allowed
    ]
    assert not wrong, wrong


def test_modules_without_mindspore_stay_so() -> None:
    models = [name_of(path) for path in sorted(PACKAGE.glob("models/*/config.py"))]
    tokenizers = [name_of(path) for path in sorted((PACKAGE / "tokenizers").glob("*.py"))]
    weights = [name_of(path) for path in sorted((PACKAGE / "weights").glob("*.py"))]
    names = sorted({f"mindplm.{name}" for name in FREE} | {*models, *tokenizers, *weights})
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'mindspore' not in sys.modules, name + ' imports mindspore'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_other_frameworks_are_imported_by_their_adapters_alone() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "mindformers" for name in names):
                assert path.parent.name == "integrations", f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            first = node.body[0]
            has_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            text_lines = (first.end_lineno or 0) - first.lineno + 1 if has_text else 0
            length = node.end_lineno - node.lineno + 1 - text_lines
            assert length < MAX_FUNCTION, f"{node.name} has {length} lines without its docstring"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_modules_say_what_they_are_for_and_run_on_python_3_9(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    assert ast.get_docstring(tree), "no docstring"
    assert not any(isinstance(node, getattr(ast, "Match", ())) for node in ast.walk(tree))
    if any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body):
        names = [n.module for n in tree.body if isinstance(n, ast.ImportFrom)]
        if path.name != "errors.py":
            assert "__future__" in names, "from __future__ import annotations is missing"
