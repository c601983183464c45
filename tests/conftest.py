"""Strict numerics for every test: silent promotion of dtypes or ranks is an error, and shapes are checked."""

import os
from functools import cache

import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook
from programs import let_go_of_many

# Programs here take seconds to compile and none to run, so LLVM is asked for little; XLA's own passes are as ever.
# `make test-all` sets the variable, to nothing, and tests what users run.
_FLAGS = "--xla_backend_optimization_level=0"
# An emitter that takes half as long to write fused loops, which XLA has had until then; an unknown flag ends a process.
if jax.__version_info__ < (0, 11):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook(["ntkprefix", "theory"], "typecheck.checked")

# Scripts that make the golden files in environments of their own, and import what this one does not have; and those
# that tests start as processes of their own.
collect_ignore = [
    "command_by_hosts.py",
    "compress_on_two_devices.py",
    "golden",
    "models/loading_on_two_devices.py",
    "one_of_two_processes.py",
    "parallel_on_eight_devices.py",
    "planning_on_eight_devices.py",
    "properties_on_four_devices.py",
    "theory/on_eight_devices.py",
]


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Of earlier files."""
    yield
    let_go_of_many()


@pytest.fixture
def compiled():
    """The names of the functions that a test compiles, one for each time; nothing is compiled when it begins."""
    jax.clear_caches()
    names = []

    def note(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture
def relaxed():
    """JAX's own promotion rules, for libraries that serve as oracles."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def x64():
    """Float64, to separate an approximation's error from rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """No shape checks by jaxtyping, to see what users see: they run without them."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """The tiny text models of the golden file by their names, each loaded once."""
    from models.tiny_text import write_folder

    from ntkprefix.models import load_text_model

    @cache
    def load(name):
        return load_text_model(write_folder(tmp_path_factory.mktemp(name) / "m", name))

    return load
