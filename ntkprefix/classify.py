"""Image classification with a frozen vision transformer, an adapter and a linear head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8

from ntkprefix.adapters import Adapter
from ntkprefix.images import normalise
from ntkprefix.models import ViT
from ntkprefix.models.adaptation import merge

# Images per call outside training: enough to keep two cores or a GPU busy, little enough for any memory.
_BATCH = 64


class Classifier:
    r"""Logits `W [class token, mean patch token] + b` of a frozen ViT under an adapter; W, b and the adapter train.

    Attributes:
        frozen: the model's weights, shared by all classifiers of one model.
    """

    def __init__(self, model: ViT, adapter: Adapter):
        self._graph, self.frozen = nnx.split(model)
        self._adapter = adapter

    def init(self, key: PRNGKeyArray, images: UInt8[np.ndarray, "B h w 3"], classes: int) -> PyTree:
        """Starting parameters: the adapter's, calibrated on `images`, and a head of zeros.

        Args:
            key: random key of the adapter.
            images: a calibration batch from the training images.
            classes: number of classes.

        Returns:
            `{"adapter": ..., "head": {"kernel", "bias"}}`.
        """
        model = nnx.merge(self._graph, self.frozen)
        statistics = jax.jit(lambda images: model.attention_statistics(normalise(images)))(jnp.asarray(images))
        width = 2 * model.config.block.width
        head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
        return {"adapter": self._adapter.init(key, model, statistics), "head": head}

    def features(self, params: PyTree, frozen: PyTree, images: UInt8[Array, "B h w 3"]) -> Float[Array, "B width"]:
        """Class token and mean patch token, side by side."""
        adaptation = self._adapter.adapt(params["adapter"])
        tokens = merge(self._graph, frozen, adaptation)(normalise(images), adapter=adaptation)
        return jnp.concatenate([tokens[:, 0], jnp.mean(tokens[:, 1:], axis=1)], axis=-1)

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters that the adapter allows."""
        return {**params, "adapter": self._adapter.project(params["adapter"])}

    def loss(
        self, params: PyTree, frozen: PyTree, images: UInt8[Array, "B h w 3"], labels: Int[Array, " B"]
    ) -> Float[Array, ""]:
        """Mean cross-entropy, in nats."""
        return head_loss(params["head"], None, self.features(params, frozen, images), labels)

    def predict(
        self, params: PyTree, images: UInt8[np.ndarray, "N h w 3"], *, on_batch: Callable[[int], Any] | None = None
    ) -> Int[np.ndarray, " N"]:
        """The most likely class of every image; `on_batch` as in `all_features`."""
        features = self.all_features(params, images, on_batch=on_batch)
        return np.asarray(jnp.argmax(logits(params["head"], jnp.asarray(features)), axis=-1))

    def all_features(
        self, params: PyTree, images: UInt8[np.ndarray, "N h w 3"], *, on_batch: Callable[[int], Any] | None = None
    ) -> Float[np.ndarray, "N width"]:
        """Features of any number of images, a batch at a time; `on_batch` is told how many are done."""
        parts = []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            # Every batch has one shape, so one program serves them all.
            padded = np.concatenate([batch, np.zeros((_BATCH - len(batch), *batch.shape[1:]), batch.dtype)])
            parts.append(np.asarray(_features(self, params, self.frozen, padded))[: len(batch)])
            if on_batch is not None:
                on_batch(start + len(batch))
        return np.concatenate(parts)


def logits(head: PyTree, features: Float[Array, "B width"]) -> Float[Array, "B classes"]:
    """The linear head."""
    return features @ head["kernel"] + head["bias"][None]


def head_loss(
    head: PyTree,
    frozen: Any,  # noqa: ARG001 - the training loop's signature
    features: Float[Array, "B width"],
    labels: Int[Array, " B"],
) -> Float[Array, ""]:
    """Mean cross-entropy of the head alone, on features computed once: what linear probing minimises."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(head, features), labels))


@partial(jax.jit, static_argnums=0)
def _features(classifier, params, frozen, images):
    return classifier.features(params, frozen, images)
