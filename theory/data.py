"""Inputs and targets for the stylised model."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkprefix.checks import at_least, finite, one_of, short_seed

Inputs = Literal["sphere", "gaussian", "digits"]
Projection = Literal["pca", "random"]
Targets = Literal["gaussian", "teacher", "labels"]


class Data(NamedTuple):
    """Inputs and targets.

    Attributes:
        x: training inputs, [n, d].
        y: their targets, [n, d].
        x_test: held-out inputs, [n_test, d].

    Example:
        >>> from theory import make_data
        >>> data = make_data(n=8, d=4, n_test=2)
        >>> data.x.shape, data.y.shape, data.x_test.shape
        ((8, 4), (8, 4), (2, 4))
    """

    x: Float[Array, "n d"]
    y: Float[Array, "n d"]
    x_test: Float[Array, "n_test d"]


def make_data(
    n: int,
    d: int,
    n_test: int = 32,
    *,
    data: Inputs = "sphere",
    projection: Projection = "pca",
    targets: Targets = "gaussian",
    target_scale: float = 1.0,
    seed: int = 0,
) -> Data:
    """Draw inputs and targets.

    Inputs are `sphere`: uniform on the unit sphere; `gaussian`: N(0, I/d), so that the norm is about 1; `digits`:
    scikit-learn's handwritten digits, centred, brought down from 64 to d dimensions and scaled to unit norm.
    Targets are `gaussian`: N(0, I/d), nothing to generalise from; `teacher`: sin(A x)/sqrt(d/2) with a random A, a
    smooth function; `labels`: a digit's class c as the unit vector e_{c mod d} less its mean, to unit norm.

    Args:
        n: training inputs, at least 1.
        d: width, at least 1; at most 64 for digits, at least 2 for labels.
        n_test: held-out inputs; 0 for none.
        data: kind of inputs.
        projection: for digits, `pca` or `random`.
        targets: kind of targets.
        target_scale: factor on the targets.
        seed: the same seed gives the same data; within 0..2^32 - 1.

    Returns:
        Data of type float32 (float64 when JAX is set to it).

    Raises:
        ImportError: digits are asked for and scikit-learn is not installed.
        TypeError: a count or the seed is not an integer, or the scale is not a number.
        ValueError: an unknown kind, a count or seed out of range, a scale that is not finite, too many digits or
            dimensions, or labels without digits.

    Example:
        >>> from theory import make_data
        >>> make_data(n=8, d=4).x.shape
        (8, 4)
    """
    at_least(1, "make_data", n=n, d=d)
    at_least(0, "make_data", n_test=n_test)
    short_seed("make_data", seed)
    finite("make_data", target_scale=target_scale)
    one_of("make_data", "data", data, get_args(Inputs))
    one_of("make_data", "projection", projection, get_args(Projection))
    one_of("make_data", "targets", targets, get_args(Targets))
    if targets == "labels" and (data != "digits" or d < 2):
        raise ValueError(
            f"make_data: expected data='digits' and d of at least 2 for targets='labels', got data={data!r} and d={d}."
        )
    input_key, target_key = jax.random.split(jax.random.key(seed))
    labels = None
    if data == "digits":
        inputs, labels = _digits(n + n_test, d, projection, seed)
    else:
        inputs = _random_inputs(input_key, n + n_test, d, unit_norm=data == "sphere")
    x, x_test = inputs[:n], inputs[n:]
    return Data(x, target_scale * _targets(targets, target_key, x, labels), x_test)


@partial(jax.jit, static_argnames=("count", "d", "unit_norm"))
def _random_inputs(key, count, d, *, unit_norm):
    inputs = jax.random.normal(key, (count, d)) / math.sqrt(d)
    return inputs / jnp.linalg.norm(inputs, axis=1, keepdims=True) if unit_norm else inputs


def _targets(kind, key, x, labels):
    n, d = x.shape
    if kind == "gaussian":
        return _random_inputs(key, n, d, unit_norm=False)
    if kind == "teacher":
        return _teacher(key, x)
    centred = np.eye(d)[labels[:n] % d] - 1 / d
    return jnp.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True), x.dtype)


@jax.jit
def _teacher(key, x):
    d = x.shape[1]
    # A of entries N(0, 4) turns a unit input by about two radians: smooth, but not linear.
    return jnp.sin(jnp.matmul(x, 2 * jax.random.normal(key, (d, d)))) / math.sqrt(d / 2)


def _digits(count, d, projection, seed):
    """Distinct digits [count, d] of unit norm, and their classes [count]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("data='digits' needs scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    if count > len(images) or d > images.shape[1]:
        raise ValueError(
            f"make_data: expected at most {len(images)} digits, held-out ones included, of at most {images.shape[1]} "
            f"dimensions, got {count} digits, d={d}."
        )
    images = images - images.mean(axis=0)
    rng = np.random.default_rng(seed)
    if projection == "pca":
        axes = np.linalg.svd(images, full_matrices=False)[2][:d].T
    else:
        axes = np.linalg.qr(rng.standard_normal((images.shape[1], d)))[0]
    chosen = rng.choice(len(images), count, replace=False)
    inputs = images[chosen] @ axes
    return jnp.asarray(inputs / np.linalg.norm(inputs, axis=1, keepdims=True), dtype=float), labels[chosen]
