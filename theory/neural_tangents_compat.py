"""The one door to the `neural_tangents` package, which does not import on JAX 0.6 and later as published.

What is patched while `neural_tangents` 0.6.5 is imported, and why:

- `jax.core` gets `Jaxpr`, `JaxprEqn`, `ClosedJaxpr`, `Literal`, `Var` and `Primitive` back. JAX moved them to
  `jax.extend.core`.
- A module `jax.util` with `safe_map` and `safe_zip` is supplied. JAX made it private.
- `jax.interpreters.ad` gets `zeros_like_p` back. JAX keeps it in `jax._src.ad_util`.
- `neural_tangents.experimental` is replaced by an empty module. It is the only part that imports TensorFlow.

Each patch is made only where the name is missing, and undone after the import, so that other code sees JAX as it is.
What works: `empirical_ntk_fn` with implementations 1 (contracting Jacobians) and 2 (kernel-vector products), `batch`,
`linearize` and `predict.gradient_descent_mse`. Implementation 3 (structured derivatives) reads JAX internals that are
gone, and the default 0 tries it, so neither is offered.

The package is imported at the first call of a function here, never on import of this file.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad

_MOVED_FROM_CORE = ("Jaxpr", "JaxprEqn", "ClosedJaxpr", "Literal", "Var", "Primitive")
_TENSORFLOW_PART = "neural_tangents.experimental"
_INSTALL = "pip install --no-deps neural-tangents && pip install frozendict"
_lock = threading.Lock()


def load() -> types.ModuleType:
    """Import `neural_tangents`, or return it when it is imported already.

    Returns:
        The module, with `experimental` left out when it is this function that imports it.

    Raises:
        ImportError: the package, or its dependency `frozendict`, is not installed. The message says how to.

    Example:
        >>> from theory import neural_tangents_compat
        >>> neural_tangents_compat.load().__name__
        'neural_tangents'
    """
    with _lock:
        if sys.modules.get("neural_tangents") is not None:
            return sys.modules["neural_tangents"]
        with _patched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its deprecated imports are not the caller's to mend
            try:
                module = importlib.import_module("neural_tangents")
            except ModuleNotFoundError as error:
                raise ImportError(
                    f"This needs the package neural-tangents ({error}). Install it without TensorFlow: {_INSTALL}"
                ) from error
        vars(module).pop("experimental", None)
        return module


def empirical_ntk_fn(f: Callable, *, implementation: int = 1, **options: Any) -> Callable:
    """`neural_tangents.empirical_ntk_fn`, by default with all output axes kept: kernels are [n1, n2, d, d].

    Args:
        f: function `f(params, x)`.
        implementation: 1 contracts Jacobians, 2 uses kernel-vector products.
        options: passed on.

    Returns:
        `kernel_fn(x1, x2, params)`; `x2=None` stands for `x1`.

    Raises:
        ImportError: neural_tangents is not installed.
        ValueError: another implementation is asked for.
    """
    if implementation not in (1, 2):
        raise ValueError(
            f"empirical_ntk_fn: expected implementation 1 or 2, got {implementation}: the others fail on current JAX."
        )
    options = {"trace_axes": ()} | options
    return _relaxed(_relaxed(load().empirical_ntk_fn)(f, implementation=implementation, **options))


def gradient_descent_mse(k_train_train: Any, y_train: Any, **options: Any) -> Callable:
    """`neural_tangents.predict.gradient_descent_mse`: gradient flow on 1/2 mean (F - y)², for kernels
    [n, n, d, d]. With `learning_rate=y.size` that is the flow on 1/2 Σ (F - y)².

    Raises:
        ImportError: neural_tangents is not installed.
    """
    options = {"trace_axes": ()} | options
    return _relaxed(_relaxed(load().predict.gradient_descent_mse)(k_train_train, y_train, **options))


def linearize(f: Callable, params: Any) -> Callable:
    """`neural_tangents.linearize`: f's first-order Taylor expansion in its parameters.

    Raises:
        ImportError: neural_tangents is not installed.
    """
    return _relaxed(_relaxed(load().linearize)(f, params))


def batch(kernel_fn: Callable, batch_size: int = 0, *, device_count: int = 0, **options: Any) -> Callable:
    """`neural_tangents.batch`: compute a kernel block by block, by default on one device.

    Raises:
        ImportError: neural_tangents is not installed.
    """
    return _relaxed(_relaxed(load().batch)(kernel_fn, batch_size, device_count, **options))


def _relaxed(function: Callable) -> Callable:
    """Run under JAX's default promotion rules, which the package relies on, whatever the caller has set."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as at the import
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    """Supply what is missing, and take it away again."""
    util = types.ModuleType("jax.util")
    vars(util).update(safe_map=_safe_map, safe_zip=_safe_zip)
    with contextlib.ExitStack() as undo:
        for name in _MOVED_FROM_CORE:
            _supply(undo, jax.core, name, getattr(jax.extend.core, name))
        if not hasattr(jax.interpreters.ad, "zeros_like_p"):
            moved = importlib.import_module("jax._src.ad_util").zeros_like_p
            _supply(undo, jax.interpreters.ad, "zeros_like_p", moved)
        if not hasattr(jax, "util"):
            _supply(undo, jax, "util", util)
            sys.modules["jax.util"] = util
            undo.callback(sys.modules.pop, "jax.util", None)
        sys.modules[_TENSORFLOW_PART] = types.ModuleType(_TENSORFLOW_PART)
        undo.callback(sys.modules.pop, _TENSORFLOW_PART, None)
        yield


def _supply(undo: contextlib.ExitStack, module: types.ModuleType, name: str, value: Any) -> None:
    if not hasattr(module, name):
        setattr(module, name, value)
        undo.callback(delattr, module, name)


def _safe_zip(*sequences: Any) -> list:
    return list(zip(*sequences, strict=True))


def _safe_map(function: Callable, *sequences: Any) -> list:
    return [function(*items) for items in zip(*sequences, strict=True)]
