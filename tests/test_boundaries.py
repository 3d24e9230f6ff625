# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Which part of the bundle may import which, and what no part may do."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MODULES = sorted(SCRIPTS.rglob("*.py"))

#: Parts of scripts/ (its packages and its modules) and the other parts that each may import.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "locks": {"errors"},
    "nifti": {"errors", "files"},
    "parallel": set(),
    "schedules": set(),
    "networks": set(),
    "losses": {"parallel"},
    # Networks only as the type of an argument: a method receives its network.
    "methods": {"losses", "networks", "schedules"},
    "data": {"errors", "files", "nifti", "parallel", "weights"},
    "evaluation": {"errors", "files", "nifti", "weights"},
    "weights": {"errors", "files"},
    "configuration": {"errors", "files"},
    "console": {"configuration", "errors", "files"},
    "precision": {"errors"},
    "memory": set(),
    "evaluator": {"precision"},
    "inferer": set(),
    "organ_inferer": {"data.geometry"},
    "trainer": {"errors", "parallel", "precision"},
    "handlers": {"errors", "configuration", "files", "evaluation", "locks", "parallel", "weights"},
    "settings": {"errors", "precision"},
    "grid": {"errors", "configuration", "console", "files", "locks", "data.loading", "data.splits", "settings"},
    "inference_configuration": {"errors", "configuration", "console", "files", "handlers.run_comparison", "settings"},
    "predict": {
        "errors",
        "console",
        "data",
        "evaluation.label_maps",
        "evaluation.metrics",
        "files",
        "inference_configuration",
        "nifti",
    },
    "studies": {
        "errors",
        "console",
        "data.cases",
        "data.geometry",
        "data.loading",
        "evaluation",
        "files",
        "inference_configuration",
        "locks",
        "networks.layers",
        "nifti",
        "predict",
        "settings",
        "weights",
    },
    "export": {"errors", "weights"},
    "packaging": {
        "errors",
        "configuration",
        "evaluation.case_report",
        "files",
        "handlers.run_comparison",
        "handlers.run_directory",
        "settings",
        "weights",
    },
    "benchmark": {
        "errors",
        "configuration",
        "console",
        "data",
        "evaluation.wording",
        "export",
        "files",
        "handlers.run_comparison",
        "inferer",
        "methods.dual_network",
        "networks.dual_network",
        "nifti",
        "precision",
        "studies",
        "trainer",
        "weights",
    },
    "arguments": {"errors", "data.splits", "files", "grid.methods", "inference_configuration"},
    "__main__": {
        "errors",
        "arguments",
        "benchmark",
        "console",
        "data",
        "evaluation",
        "export",
        "files",
        "grid",
        "nifti",
        "packaging",
        "predict",
        "settings",
        "studies",
    },
    "__init__": set(),
}

#: What the parts that compute may import beside the standard library: no file format, no engine, no table.
LIBRARIES = {
    "errors": set(),
    "files": set(),
    "parallel": {"torch", "monai"},
    "schedules": {"torch", "monai"},
    "networks": {"torch", "monai"},
    "losses": {"torch", "monai"},
    "methods": {"torch", "monai"},
    "precision": {"torch"},
    "memory": set(),
    "trainer": {"torch", "monai"},
    "evaluator": {"torch", "monai"},
    "inferer": {"numpy", "torch", "monai"},
    "organ_inferer": {"numpy", "torch", "monai", "nibabel", "scipy"},
}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(path):
    return path.relative_to(SCRIPTS).parts[0].removesuffix(".py")


def imports_of(path):
    """Absolute dotted names that a module imports, at its top or anywhere else in it."""
    package = ("scripts", *path.relative_to(SCRIPTS).parts[:-1])
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from . import x" may name a module or a name of one; both begin with the same part.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def calls_of(path):
    """Dotted names of the functions that a module calls, with the calls."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden_arrows(path):
    allowed = ALLOWED[part_of(path)] | {part_of(path)}
    for name in imports_of(path):
        if name.split(".")[0] == "scripts":
            target = name.removeprefix("scripts.")
            if not any(target == other or target.startswith(f"{other}.") for other in allowed):
                yield name


def test_there_is_something_to_check():
    assert len(MODULES) > 20
    assert {part_of(path) for path in MODULES} <= ALLOWED.keys(), "a new part of scripts/ needs a line in ALLOWED"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_imports_go_downwards_only(path):
    assert list(forbidden_arrows(path)) == []


def test_every_arrow_of_the_table_is_used():
    used = {part: set() for part in ALLOWED}
    for path in MODULES:
        targets = [name.removeprefix("scripts.") for name in imports_of(path) if name.split(".")[0] == "scripts"]
        for allowed in ALLOWED[part_of(path)]:
            if any(target == allowed or target.startswith(f"{allowed}.") for target in targets):
                used[part_of(path)].add(allowed)
    assert used == ALLOWED


def test_the_table_has_no_circle():
    seen = set()
    remaining = {part: {target.split(".")[0] for target in targets} for part, targets in ALLOWED.items()}
    while remaining:
        free = {part for part, targets in remaining.items() if targets <= seen}
        assert free, f"{sorted(remaining)} import each other"
        seen |= free
        remaining = {part: targets for part, targets in remaining.items() if part not in free}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_inside_scripts_imports_are_relative(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "scripts" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] != "scripts"


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(path) in LIBRARIES], ids=lambda path: path.name)
def test_parts_that_compute_import_few_libraries(path):
    outside = {name.split(".")[0] for name in imports_of(path)} - {"scripts", "__future__"} - sys.stdlib_module_names
    assert outside <= LIBRARIES[part_of(path)]


def test_methods_build_no_network_and_touch_no_file():
    for path in MODULES:
        if part_of(path) == "methods":
            called = {name.split(".")[-1] for name, _ in calls_of(path)}
            networks = {"DualNetwork", "SingleNetwork", "MultiDecoderVNet", "DualTaskVNet", "VNet", "ResNetVNet"}
            assert not called & {*networks, "Discriminator", "open", "Path", "cuda", "to", "SGD", "Adam"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_files_are_loaded_without_running_their_code(path):
    for name, call in calls_of(path):
        if name == "torch.load":
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            assert isinstance(options.get("weights_only"), ast.Constant), f"line {call.lineno}"
            assert options["weights_only"].value is True, f"line {call.lineno}"
        assert name not in {
            "load_state_dict_from_url",
            "torch.hub.load",
            "torch.jit.load",
            "pickle.load",
            "pickle.loads",
            "pickle.Unpickler",
            "np.load",
            "eval",
            "exec",
            "os.system",
        }, f"line {call.lineno}"
    # Renamed functions would not be seen above.
    assert not set(imports_of(path)) & {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_nothing_is_printed_and_no_device_is_chosen(path):
    for name, call in calls_of(path):
        assert name not in {"print", "torch.manual_seed", "np.random.seed", "random.seed"}, f"line {call.lineno}"
        assert not name.endswith(".cuda"), f"line {call.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_text_files_have_one_encoding_on_every_machine(path):
    for name, call in calls_of(path):
        # The mode is the first argument of Path.open, the second one of open itself.
        modes = [*call.args[name == "open" :], *(word.value for word in call.keywords if word.arg == "mode")]
        is_binary = bool(modes) and "b" in ast.unparse(modes[0])
        text = name.endswith((".read_text", ".write_text")) or (name.split(".")[-1] == "open" and not is_binary)
        if text and name not in {"gzip.open", "tarfile.open"}:
            assert "encoding" in {keyword.arg for keyword in call.keywords}, f"line {call.lineno}"


# --- the walk itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "line", "arrows"),
    [
        ("losses/x.py", "from ..methods.base import Method", ["scripts.methods.base.Method"]),
        ("losses/x.py", "from .. import trainer", ["scripts.trainer"]),
        ("losses/x.py", "def f():\n    import scripts.handlers.history", ["scripts.handlers.history"]),
        ("losses/x.py", "from .checks import check_logits\nfrom ..parallel import num_processes", []),
        ("grid/x.py", "from ..data.splits import read_split", []),
        ("grid/x.py", "from ..data.boxes import CropToBoxd", ["scripts.data.boxes.CropToBoxd"]),
        ("data/prepare/x.py", "from ..splits import load_cases\nfrom ...errors import BundleError", []),
        ("data/prepare/x.py", "from ...evaluation import metrics", ["scripts.evaluation.metrics"]),
    ],
)
def test_the_walk_finds_arrows(tmp_path, monkeypatch, where, line, arrows):
    monkeypatch.setattr(sys.modules[__name__], "SCRIPTS", tmp_path)
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert list(forbidden_arrows(path)) == arrows
