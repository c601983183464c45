"""Inputs and targets for the stylised model."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Data(NamedTuple):
    """Training inputs x and targets y, [n, d], and held-out inputs x_test, [n_test, d]."""

    x: Float[Array, "n d"]
    y: Float[Array, "n d"]
    x_test: Float[Array, "n_test d"]


def make_data(
    n: int,
    d: int,
    n_test: int = 32,
    *,
    data: Literal["sphere", "gaussian", "digits"] = "sphere",
    projection: Literal["pca", "random"] = "pca",
    targets: Literal["gaussian", "teacher", "labels"] = "gaussian",
    target_scale: float = 1.0,
    seed: int = 0,
) -> Data:
    """Draw inputs and targets.

    Inputs are `sphere`: uniform on the unit sphere; `gaussian`: N(0, I/d), so that the norm is about 1; `digits`:
    scikit-learn's handwritten digits, centred, brought down from 64 to d dimensions and scaled to unit norm.
    Targets are `gaussian`: N(0, I/d), nothing to generalise from; `teacher`: sin(A x)/sqrt(d/2) with a random A, a
    smooth function; `labels`: a digit's class c as the unit vector e_{c mod d} less its mean, to unit norm.

    Args:
        n: training inputs.
        d: width; at most 64 for digits, at least 2 for labels.
        n_test: held-out inputs.
        data: kind of inputs.
        projection: for digits, `pca` or `random`.
        targets: kind of targets.
        target_scale: factor on the targets.
        seed: the same seed gives the same data.

    Returns:
        Data of type float32 (float64 when JAX is set to it).

    Raises:
        ImportError: digits are asked for and scikit-learn is not installed.
        ValueError: an unknown kind, too many digits or dimensions, or labels without digits.

    Example:
        >>> from theory import make_data
        >>> make_data(n=8, d=4).x.shape
        (8, 4)
    """
    input_key, target_key = jax.random.split(jax.random.key(seed))
    labels = None
    if data == "digits":
        inputs, labels = _digits(n + n_test, d, projection, seed)
    elif data in ("sphere", "gaussian"):
        inputs = _random_inputs(input_key, n + n_test, d, unit_norm=data == "sphere")
    else:
        raise ValueError(f"expected data 'sphere', 'gaussian' or 'digits', got {data!r}.")
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
    if kind != "labels":
        raise ValueError(f"expected targets 'gaussian', 'teacher' or 'labels', got {kind!r}.")
    if labels is None or d < 2:
        raise ValueError(f"expected data='digits' and d of at least 2 for targets='labels', got d={d}.")
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
    if not (count <= len(images) and 1 <= d <= images.shape[1] and projection in ("pca", "random")):
        raise ValueError(
            f"expected at most {len(images)} digits, held-out ones included, of at most {images.shape[1]} dimensions, "
            f"by 'pca' or 'random' projection, got {count} digits, d={d}, projection={projection!r}."
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
