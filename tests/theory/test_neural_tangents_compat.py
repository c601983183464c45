import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory import init_stylized, neural_tangents_compat, stylized_model


def run(program):
    """In a fresh interpreter, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )


def test_theory_needs_neither_neural_tangents_nor_matplotlib():
    result = run("""
        import sys
        import theory
        loaded = {name.split(".")[0] for name in sys.modules}
        assert not loaded & {"neural_tangents", "matplotlib", "tensorflow", "flax"}, loaded
    """)
    assert result.returncode == 0, result.stderr


def test_jax_is_as_before_after_the_import_and_a_second_one_works():
    result = run("""
        import sys, warnings
        import jax, jax.core, jax.interpreters.ad
        modules = jax, jax.core, jax.interpreters.ad
        before = [set(vars(module)) for module in modules]
        from theory import neural_tangents_compat as compat
        first = compat.load()
        for module, names in zip(modules, before):
            # Submodules of jax that become attributes because they are imported are no patch.
            added = {name for name in set(vars(module)) - names if f"{module.__name__}.{name}" not in sys.modules}
            assert not added, added
        assert "jax.util" not in sys.modules and "neural_tangents.experimental" not in sys.modules
        assert "tensorflow" not in sys.modules and not hasattr(first, "experimental")
        assert compat.load() is first
        import neural_tangents
        assert neural_tangents is first
    """)
    assert result.returncode == 0, result.stderr


def test_message_when_neural_tangents_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents"):
        neural_tangents_compat.load()
    assert "neural_tangents.experimental" not in sys.modules
    assert not hasattr(jax.core, "Jaxpr")


def test_one_file_imports_neural_tangents():
    sources = {path.name: path.read_text() for path in Path(theory.__path__[0]).glob("*.py")}
    pattern = re.compile(r"^\s*(import|from) neural_tangents\b|import_module\(.neural_tangents", re.MULTILINE)
    assert [name for name, text in sources.items() if pattern.search(text)] == ["neural_tangents_compat.py"]


@pytest.mark.parametrize("implementation", [0, 3])
def test_broken_implementations_are_not_offered(implementation):
    with pytest.raises(ValueError, match=f"expected implementation 1 or 2, got {implementation}"):
        neural_tangents_compat.empirical_ntk_fn(jnp.matmul, implementation=implementation)


def test_linearize_is_the_tangent():
    W, a = init_stylized(jax.random.key(0), 16, 3)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    change = 0.1 * jax.random.normal(jax.random.key(2), W.shape)
    linear = neural_tangents_compat.linearize(lambda W, x: stylized_model(W, a, x), W)(W + change, x)
    step = 1e-3
    ahead, behind = (stylized_model(W + sign * step * change, a, x) for sign in (1, -1))
    np.testing.assert_allclose(linear, stylized_model(W, a, x) + (ahead - behind) / (2 * step), atol=2e-3)


def test_batch_gives_the_same_kernel():
    W, a = init_stylized(jax.random.key(0), 32, 3)
    x = jax.random.normal(jax.random.key(1), (6, 3))
    kernel_fn = neural_tangents_compat.empirical_ntk_fn(lambda W, x: stylized_model(W, a, x))
    batched = neural_tangents_compat.batch(kernel_fn, 3)
    np.testing.assert_allclose(batched(x, None, W), kernel_fn(x, None, W), rtol=1e-5, atol=1e-5)


def test_gradient_flow_has_the_known_solution():
    kernel = jnp.eye(2)[:, :, None, None] * jnp.array([[[[2.0]]]])
    y = jnp.array([[1.0], [-3.0]])
    flow = neural_tangents_compat.gradient_descent_mse(kernel, y, learning_rate=y.size)
    np.testing.assert_allclose(flow(0.7, jnp.zeros_like(y)), y * (1 - np.exp(-1.4)), rtol=1e-5)
