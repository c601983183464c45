"""What is built installs in an empty environment and works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults.commands import COMMANDS
from models.dinov2_folders import tiny_golden, weights_of, write_folder
from models.tiny_gguf import write_gguf

import ntkprefix

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "_build", "runs", "golden")
# What PYTHONPATH names would hide what is installed.
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
CONSTRAINTS = ["--constraint", str(ROOT / "constraints.txt")]

SMOKE = """
import jax.numpy as jnp
import ntkprefix
from ntkprefix import FeaturePrefix, attention
state = FeaturePrefix.from_tokens(jnp.ones((9, 2, 4)), jnp.ones((9, 2, 4)))
out = attention(*jnp.ones((3, 1, 5, 2, 4)), prefix=state, is_causal=True)
assert out.shape == (1, 5, 2, 4) and jnp.allclose(out, 1.0)
print(ntkprefix.__file__)
"""


def python(environment, *arguments, check=True, **options):
    command = [str(environment / "bin" / "python"), *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True, env=OUTSIDE, **options)


def empty(folder):
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


def install(environment, *what, check=True):
    return python(environment, "-m", "pip", "install", "--quiet", *what, check=check)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and a wheel made from it; a place outside the checkout; an environment with the wheel."""
    place = tmp_path_factory.mktemp("wheel")
    tools = empty(place / "tools")
    if install(tools, "build", check=False).returncode:
        pytest.skip("no package index")
    shutil.copytree(ROOT, place / "sources", ignore=NOT_SOURCES)
    python(tools, "-m", "build", "--outdir", str(place / "dist"), str(place / "sources"))
    (wheel,), (sdist,) = ((place / "dist").glob(end) for end in ("*.whl", "*.tar.gz"))
    environment = empty(place / "environment")
    install(environment, *CONSTRAINTS, str(wheel))
    (place / "elsewhere").mkdir()
    return SimpleNamespace(wheel=wheel, sdist=sdist, environment=environment, place=place / "elsewhere")


def command(built, *arguments):
    program = str(built.environment / "bin" / "ntkprefix")
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, cwd=built.place, env=OUTSIDE, check=False
    )


def assert_works(built):
    told = command(built, "--help")
    assert told.returncode == 0
    assert told.stdout.startswith("usage: ntkprefix <command> [options]")
    assert command(built, "--version").stdout == f"ntkprefix {ntkprefix.__version__}\n"
    where = python(built.environment, "-c", SMOKE, cwd=built.place).stdout.strip()
    assert Path(where).is_relative_to(built.environment)


@pytest.mark.slow
def test_a_wheel_holds_what_is_needed_and_no_more(built):
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ntkprefix", "theory"}
    for package in ("ntkprefix", "theory"):
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in sources if "__pycache__" not in name} <= set(names)


@pytest.mark.slow
def test_a_wheel_works_with_jax_alone(built):
    assert_works(built)
    packages = python(built.environment, "-m", "pip", "list", "--format", "freeze").stdout
    assert "jax==" in packages
    assert "flax==" not in packages
    told = command(built, "train")
    assert told.returncode == 2
    assert told.stderr.startswith("ntkprefix train: needs flax, gguf, onnx, optax")
    assert told.stderr.count("\n") == 1
    ended = python(built.environment, "-c", "import ntkprefix.models", check=False, cwd=built.place)
    assert 'pip install "ntkprefix[models]"' in ended.stderr


@pytest.mark.slow
def test_extras_bring_what_the_commands_need(built):
    install(built.environment, *CONSTRAINTS, f"ntkprefix[demo] @ {built.wheel.as_uri()}")
    told = command(built, "verify")
    assert told.stderr.startswith("ntkprefix verify: needs neural_tangents, not installed.")
    install(built.environment, *CONSTRAINTS, "--no-deps", "neural-tangents")
    assert command(built, "plan", "--json").returncode == 0
    assert command(built, "report", str(ROOT / "experiments" / "results" / "verify.json")).returncode == 0
    assert (built.place / "report.html").stat().st_size > 10**6
    assert "micro-batches" in command(built, "--completion", "bash").stdout
    gguf = write_gguf(built.place / "m.gguf")
    (built.place / "prompt.txt").write_text("ab a b " * 40)
    vit = write_folder(built.place / "vit", weights_of(tiny_golden()))
    for name, model, status in (("train", vit, 0), ("verify", None, 1), ("compress", gguf, 0)):
        told = command(built, *COMMANDS[name](model, built.place / name))
        assert told.returncode == status, told.stderr
    texts = ["--model", str(gguf), "--text", "ab", "--new", "2"]
    assert command(built, "generate", "--prefix", "compress/p.safetensors", *texts).returncode == 0


@pytest.mark.slow
def test_the_extra_for_documents_makes_them(built):
    environment = empty(built.place / "documents")
    install(environment, *CONSTRAINTS, f"ntkprefix[docs] @ {built.wheel.as_uri()}")
    install(environment, *CONSTRAINTS, "--no-deps", "neural-tangents")
    sources = built.place.parent / "sources"
    site = ["-m", "sphinx", "--fail-on-warning", "--quiet", str(sources / "docs"), str(built.place / "site")]
    python(environment, *site, cwd=sources)
    assert "ntkprefix.attention" in (built.place / "site" / "api" / "core.html").read_text()


@pytest.mark.slow
def test_an_sdist_works_too(built):
    install(built.environment, "--no-deps", "--force-reinstall", str(built.sdist))
    assert_works(built)
