"""What importing costs, and what is public."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ntkprefix
from ntkprefix._extras import extra

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", ["ntkprefix", "ntkprefix.runs", "ntkprefix.cli", "theory"])
def test_light_modules_import_nothing_heavy(module):
    heavy = ["flax", "optax", "matplotlib", "neural_tangents", "sklearn", "onnx", "PIL", "tensorflow"]
    if module == "theory":
        heavy.remove("optax")  # it trains
    program = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    required = "\n".join(line for group in groups for line in group)
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", required, re.MULTILINE))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    tools = {"ipykernel", "mypy", "ruff"}  # no test depends on theirs
    assert {name: pins.get(name) for name in bounds if name not in tools} == {
        name: bound + ".0" * (2 - bound.count(".")) for name, bound in bounds.items() if name not in tools
    }


def test_the_public_list_is_complete():
    for name in ntkprefix.__all__:
        assert getattr(ntkprefix, name) is not None
    expected = {"attention", "Partial", "merge", "TokenPrefix", "FeaturePrefix", "MeasurePrefix", "feature_map"}
    assert expected | {"taylor_error_bound"} <= set(ntkprefix.__all__)


def imported_modules(path):
    """Every module that the code imports, at its top or in a function; an example in a docstring is not code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_imports_point_one_way():
    layers = {
        "models": 2,
        "adapters": 3,
        "texts": 3,
        "train": 3,
        "theory": 3,
        "classify": 4,
        "language": 4,
        "planning": 4,
        "records": 4,
        "prompts": 4,
        "commands": 5,
    }
    for path in (ROOT / "ntkprefix").rglob("*.py"):
        part = path.relative_to(ROOT / "ntkprefix").parts[0].removesuffix(".py")
        for module in imported_modules(path):
            package, _, rest = module.partition(".")
            if package in ("ntkprefix", "theory"):
                imported = package if package == "theory" else rest.partition(".")[0]
                assert layers.get(imported, 1) <= layers.get(part, 1), f"{path} imports {imported}"


def test_the_constraints_name_versions_and_no_host():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line


MISSING = [
    ("theory", "optax", 'theory: needs the package optax, .* pip install "ntkprefix\\[theory\\]"'),
    (
        "ntkprefix.images",
        "PIL",
        r"ntkprefix\.images: needs the package PIL \(pillow\), .* pip install \"\.\[models\]\"",
    ),
    ("ntkprefix.models", "flax", r"ntkprefix\.models: needs the package flax, .* \"ntkprefix\[models\]\""),
    ("ntkprefix.models.hub", "onnx", r"ntkprefix\.models: needs the package onnx, .* \"ntkprefix\[models\]\""),
    (
        "ntkprefix.adapters",
        "safetensors",
        r"ntkprefix\.models: needs the package safetensors, .* \"ntkprefix\[models\]\"",
    ),
    ("ntkprefix.compress", "optax", r"ntkprefix\.compress: needs the package optax, .* \"ntkprefix\[models\]\""),
    ("ntkprefix.train", "optax", r"ntkprefix\.train: needs the package optax, .* \"ntkprefix\[models\]\""),
    ("ntkprefix.train", "orbax", r"ntkprefix\.train: needs the package orbax \(orbax-checkpoint\), .*"),
]


@pytest.mark.parametrize(("module", "package", "message"), MISSING)
def test_a_missing_package_is_named_with_what_installs_it(module, package, message):
    program = f"import sys; sys.modules[{package!r}] = None; import {module}"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 1
    assert re.search("ImportError: " + message, found.stderr.strip().splitlines()[-1]), found.stderr


def test_extras_exist_and_other_errors_pass():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in (path for folder in ("ntkprefix", "theory") for path in (ROOT / folder).rglob("*.py")):
        for name in re.findall(r'with extra\("(\w+)"', path.read_text()):
            assert name in extras, path
    for module in ("ntkprefix.absent", "theory.absent"):
        with pytest.raises(ModuleNotFoundError, match="absent"), extra("models", "a part"):
            importlib.import_module(module)
