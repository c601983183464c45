"""The documentation: what it shows works, what it names exists, and the reference has all that is public."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments.documents import README
from ntkprefix.adapters import ADAPTERS
from ntkprefix.cli import COMMANDS
from ntkprefix.compress import METHODS
from theory import Verdict, verdicts

ROOT = README.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
PARTS = ("adapters", "compress", "images", "models", "prefixes", "prompts", "texts", "train")
# In a process of its own: it makes jaxtyping's names short.
BUILD = """
import json, sys
from sphinx.application import Sphinx

source, out = sys.argv[1:]
site = Sphinx(source, source, out, out, "dummy", status=None, warningiserror=True)
site.build()
print(json.dumps(list(site.env.domains["py"].objects)))
sys.exit(site.statuscode)
"""


def run(*command, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    found = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The names in the reference of a site that is built without a warning."""
    # In a file: a program of Python 3.13's -c is "<string>" to Sphinx, as is the code that named tuples are made of.
    program = tmp_path_factory.mktemp("program") / "build.py"
    program.write_text(BUILD)
    return set(json.loads(run(str(program), str(DOCS), str(tmp_path_factory.mktemp("site")))))


def public_names(module):
    """Those of `__all__`, or, where there is none, those that are imported as themselves."""
    nodes = ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
    names = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return getattr(module, "__all__", [alias.name for alias in names if alias.asname == alias.name])


@pytest.mark.parametrize("name", ["ntkprefix", *(f"ntkprefix.{part}" for part in PARTS), "theory"])
def test_the_reference_has_all_that_is_public(name, reference):
    names = public_names(importlib.import_module(name))
    assert names
    for public in names:
        value = getattr(importlib.import_module(name), public)
        own = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        assert {f"{name}.{public}", own} & reference, f"{name}.{public} is in no page of docs/api."


def without_example(value):
    """Whether neither it nor, of a class, a part of it shows a use; what is inherited has been shown elsewhere."""
    own = vars(value).values() if inspect.isclass(value) else ()
    parts = [part.__func__ if isinstance(part, (classmethod, staticmethod)) else part for part in own]
    docs = [value.__doc__, *(getattr(part, "__doc__", None) for part in parts)]
    return not any(">>>" in (each or "") for each in docs)


def test_all_functions_and_classes_in_the_reference_have_an_example(reference):
    values = {name: pkgutil.resolve_name(name) for name in reference if "__" not in name}
    # Methods belong to their class.
    shown = {
        name: value
        for name, value in values.items()
        if (inspect.isroutine(value) or inspect.isclass(value)) and "." not in value.__qualname__
    }
    assert len(shown) > 150
    assert not sorted(name for name, value in shown.items() if without_example(value))


def theorem():
    """The rows of its table: what is claimed, functions and tests."""
    lines = (line for line in (DOCS / "theorem.md").read_text(encoding="utf-8").splitlines() if line.startswith("| "))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {claim: [re.findall(r"`([^`]+)`", cell) for cell in cells] for claim, *cells in rows if claim != "claim"}


def named(name):
    """What a dotted name stands for: `theory.verify` is the function, though there is a module of that name too."""
    first, *rest = name.split(".")
    value = importlib.import_module(first)
    for part in rest:
        value = getattr(value, part, None) or importlib.import_module(f"{value.__name__}.{part}")
    return value


@pytest.mark.parametrize("claim", theorem())
def test_functions_and_tests_of_the_theorem_exist(claim):
    functions, tests = theorem()[claim]
    assert functions
    assert all(callable(named(function)) for function in functions)
    assert tests
    for file, test in (test.split("::") for test in tests):
        defined = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert test in {node.name for node in defined if isinstance(node, ast.FunctionDef)}, f"{file} has no {test}."


def test_every_verdict_is_in_the_table_of_the_theorem():
    annotations = {name: getattr(value, "__annotations__", {}) for name, value in vars(verdicts).items()}
    judges = {name for name, annotated in annotations.items() if annotated.get("return") in ("Verdict", Verdict)}
    assert len(judges) == 7
    assert {f"theory.verdicts.{judge}" for judge in judges} <= {name for row in theorem().values() for name in row[0]}


def additions():
    """What `extending.md` shows: files and language of every block, and its text."""
    text, shown, file = (DOCS / "extending.md").read_text(encoding="utf-8"), [], None
    for before, language, block in re.findall(r"(.*?)^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        file = (re.findall(r"`([\w/]+\.py)`", before) or [file])[-1]
        shown.append((file, language, block))
    return shown


def test_what_is_shown_to_be_added_works(tmp_path):
    """In a copy of the library and its tests."""
    for folder in ("ntkprefix", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = []
    for file, language, block in additions():
        path = tmp_path / file
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if language == "diff":
            old, new = ("".join(f"{line[1:]}\n" for line in block.splitlines() if line[:1] != sign) for sign in "+-")
            assert before.count(old) == 1, f"{file}: expected these lines once:\n{old}"
            path.write_text(before.replace(old, new), encoding="utf-8")
        else:
            path.write_text(f"{before}\n\n{block}" if before else block, encoding="utf-8")
        if file.startswith("tests/"):
            tests.append(file)
    assert len(tests) == 4
    run("-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-p", "no:xdist", *tests, cwd=tmp_path)


def names_of(page, block):
    """What a page's block of Python leaves."""
    names = {}
    exec(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)[block], names)
    return names


def test_a_claim_of_ones_own(relaxed):
    assert 0 < names_of("guide/prove.md", 1)["distance"] < 0.2


def test_the_first_example(relaxed):
    names = names_of("index.md", 0)
    key, query = names["keys"], names["query"]
    logits = jnp.einsum("bthw,mhw->bthm", query, key - key.mean(axis=0)) / np.sqrt(8)
    assert np.abs(logits).max() < 0.6
    assert max(np.abs(names["values"]).max(), np.abs(names["value"]).max()) < 4
    assert 0 < np.abs(names["close"] - names["exact"]).max() < names["bound"] < 0.02


COMMAND_LINES = {
    line
    for path in (README, *PAGES)
    for block in re.findall(r"^```\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("ntkprefix ") and "--config" not in line
}


@pytest.mark.parametrize("line", sorted(COMMAND_LINES))
def test_options_of_commands_exist(line):
    name, *options = shlex.split(line, comments=True)[1:]
    tyro.cli(importlib.import_module(COMMANDS[name].module).Config, args=options)


def test_every_registered_name_is_told():
    for page, names in (("guide/adapt.md", ADAPTERS), ("compression.md", METHODS)):
        told = set(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text(encoding="utf-8")))
        assert set(names) <= told, f"docs/{page} lacks {sorted(set(names) - told)}."
