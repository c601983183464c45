"""Classification of images or texts with a frozen transformer, an adapter and a linear head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from ntkprefix._extras import extra
from ntkprefix.adapters import Adapter
from ntkprefix.hosts import to_host
from ntkprefix.images import normalise
from ntkprefix.models import TextModel, ViT
from ntkprefix.models.adaptation import Adaptation, merge
from ntkprefix.train import TrainConfig, TrainResult, train

with extra("models", "ntkprefix.classify"):
    import optax
    from flax import nnx

# Rows per call outside training: enough to keep two cores or a GPU busy, little enough for any memory.
_BATCH = 64
# Times the loss of guessing, from where a head has diverged: behind it, an adapter's gradient would be found at fault.
_LOST = 1e6


class Classifier:
    r"""Logits `W [one token, mean token] + b` of a frozen model under an adapter; W, b and the adapter train.

    The one token is the class token of an image, the first of a text, or the last where a model is causal; the mean is
    over the patches, or over the text. Inputs are a tuple of arrays of rows: `(images,)`, uint8 [B, h, w, 3], for a
    `ViT`; `(tokens, mask)` or `(tokens, mask, segments)`, [B, T] each and padded on the right, for a
    `TextModel`.

    Attributes:
        frozen: the model's weights, shared by all classifiers of one model.

    Example:
        >>> import jax, numpy as np
        >>> from flax import nnx
        >>> from ntkprefix.adapters import FeatureAdapter
        >>> from ntkprefix.classify import Classifier
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig
        >>> from ntkprefix.train import TrainConfig, train
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24)
        >>> model = ViT(ViTConfig(patch=4, layers=2, grid=4, block=block), rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).integers(256, size=(32, 8, 8, 3)).astype(np.uint8)
        >>> classifier, labels = Classifier(model, FeatureAdapter()), np.arange(32) % 2
        >>> start = classifier.init(jax.random.key(0), (images,), classes=2)
        >>> result = train(classifier.loss, start, classifier.frozen, (images, labels), TrainConfig(epochs=2))
        >>> classifier.predict(result.params, (images,)).shape
        (32,)
    """

    def __init__(self, model: ViT | TextModel, adapter: Adapter):
        self._graph, self.frozen = nnx.split(model)
        self._adapter = adapter

    def init(self, key: PRNGKeyArray, inputs: Sequence[np.ndarray], classes: int) -> PyTree:
        """Starting parameters: the adapter's, calibrated on `inputs`, and a head of zeros.

        Args:
            key: random key of the adapter.
            inputs: a calibration batch from the training rows.
            classes: number of classes.

        Returns:
            `{"adapter": ..., "head": {"kernel", "bias"}}`.
        """
        model = nnx.merge(self._graph, self.frozen)
        statistics = _statistics(self._graph, self.frozen, *map(jnp.asarray, inputs))
        width = 2 * model.config.block.width
        head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
        return {"adapter": self._adapter.init(key, model, statistics), "head": head}

    def features(self, params: PyTree, frozen: PyTree, *inputs: Array) -> Float[Array, "B width"]:
        """The one token and the mean token, side by side, [B, 2 width]; arguments as for `loss`, without labels."""
        adaptation = self._adapter.adapt(params["adapter"])
        return pooled(merge(self._graph, frozen, adaptation), adaptation, *inputs)

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters that the adapter allows."""
        return {**params, "adapter": self._adapter.project(params["adapter"])}

    def loss(self, params: PyTree, frozen: PyTree, *inputs_and_labels: Array) -> Float[Array, ""]:
        """Mean cross-entropy of a batch: what `train` minimises.

        Args:
            params: adapter and head, from `init` or from training.
            frozen: `self.frozen`; an argument, so that it is no constant of the compiled program.
            inputs_and_labels: the classifier's inputs and, after them, class numbers, [B].

        Returns:
            The mean over the batch, in nats.
        """
        *inputs, labels = inputs_and_labels
        return head_loss(params["head"], None, self.features(params, frozen, *inputs), labels)

    def predict(
        self, params: PyTree, inputs: Sequence[np.ndarray], *, on_batch: Callable[[int], Any] | None = None
    ) -> Int[np.ndarray, " N"]:
        """The most likely class of every row.

        Args:
            params: adapter and head.
            inputs: of the classifier, N rows.
            on_batch: as in `all_features`.

        Returns:
            Class numbers, [N].
        """
        features = self.all_features(params, inputs, on_batch=on_batch)
        return np.asarray(jnp.argmax(logits(params["head"], jnp.asarray(features)), axis=-1))

    def all_features(
        self, params: PyTree, inputs: Sequence[np.ndarray], *, on_batch: Callable[[int], Any] | None = None
    ) -> Float[np.ndarray, "N width"]:
        """Features of any number of rows, a batch at a time.

        Args:
            params: adapter and head.
            inputs: of the classifier, N rows.
            on_batch: told after every batch how many rows are done.

        Returns:
            As from `features`, [N, 2 model width].
        """
        parts = []
        for start in range(0, len(inputs[0]), _BATCH):
            batch = [array[start : start + _BATCH] for array in inputs]
            rows = len(batch[0])
            # Every batch has one shape, so one program serves them all.
            padded = [np.concatenate([a, np.zeros((_BATCH - rows, *a.shape[1:]), a.dtype)]) for a in batch]
            parts.append(to_host(_features(self, params, self.frozen, *padded))[:rows])
            if on_batch is not None:
                on_batch(start + rows)
        return np.concatenate(parts)


def probe(
    classifier: Classifier,
    params: PyTree,
    inputs: Sequence[np.ndarray],
    labels: Int[np.ndarray, " N"],
    config: TrainConfig,
    *,
    metrics: str | Path | None = None,
    on_batch: Callable[[int], Any] | None = None,
    on_step: Callable[[int, float], Any] | None = None,
) -> tuple[PyTree, TrainResult]:
    """Train the head alone, on features that are computed once: linear probing.

    It is a method of its own, and a start for others: an adapter that trains beside a head of zeros first learns what
    suits a head that means nothing yet (arXiv 2202.10054).

    Args:
        classifier: whose adapter stays at `params`.
        params: the start.
        inputs: of the classifier, N rows.
        labels: class numbers, [N].
        config: how to train the head.
        metrics: as in `train`.
        on_batch: as in `Classifier.all_features`.
        on_step: as in `train`.

    Returns:
        Parameters with the trained head, and what training it left.

    Raises:
        FloatingPointError: the loss is not finite, or ends a million times as high as that of guessing.
        ValueError: fewer rows than a batch.

    Example:
        >>> import jax, numpy as np
        >>> from flax import nnx
        >>> from ntkprefix.adapters import FeatureAdapter
        >>> from ntkprefix.classify import Classifier, probe
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig
        >>> from ntkprefix.train import TrainConfig
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24)
        >>> model = ViT(ViTConfig(patch=4, layers=2, grid=4, block=block), rngs=nnx.Rngs(0))
        >>> labels = np.arange(32) % 2
        >>> images = np.full((32, 8, 8, 3), 255, np.uint8) * labels[:, None, None, None].astype(np.uint8)
        >>> classifier = Classifier(model, FeatureAdapter())
        >>> start = classifier.init(jax.random.key(0), (images,), classes=2)
        >>> config = TrainConfig(epochs=20, batch_size=32, learning_rate=0.1)
        >>> params, result = probe(classifier, start, (images,), labels, config)
        >>> params["adapter"] is start["adapter"]  # the head alone has changed
        True
        >>> bool((classifier.predict(params, (images,)) == labels).all())  # black and white are told apart
        True

    Source: probing before fine-tuning (arXiv 2202.10054).
    """
    features = classifier.all_features(params, inputs, on_batch=on_batch)
    result = train(head_loss, params["head"], None, (features, labels), config, metrics=metrics, on_step=on_step)
    guessing, last = math.log(max(2, result.params["bias"].shape[0])), float(result.losses[-1])
    if last > _LOST * guessing:
        raise FloatingPointError(
            f"train: the head, trained alone, ends with a loss of {last:.3g}, where guessing has {guessing:.3g}. Try a "
            f"smaller learning_rate than {config.learning_rate}."
        )
    return {**params, "head": result.params}, result


def pooled(model: ViT | TextModel, adaptation: Adaptation, *inputs: Array) -> Float[Array, "B width"]:
    """The one token and the mean token, side by side: what a `Classifier` puts its head on.

    Args:
        model: with the adaptation's change of its weights added, if there is any (`ntkprefix.models.adaptation.merge`).
        adaptation: of one call.
        inputs: of a `Classifier`.

    Returns:
        Features, [B, 2 model width].

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.classify import pooled
        >>> from ntkprefix.models import Adaptation, BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens, mask = jnp.array([[3, 1, 4, 1, 0]]), jnp.array([[True, True, True, True, False]])
        >>> features, states = pooled(model, Adaptation(), tokens, mask), model(tokens, mask=mask)
        >>> features.shape
        (1, 24)
        >>> bool(jnp.allclose(features[:, :12], states[:, 3]))  # a causal model's last token that is none of padding
        True
        >>> bool(jnp.allclose(features[:, 12:], states[:, :4].mean(axis=1), atol=1e-6))
        True
    """
    return (_of_images if isinstance(model, ViT) else _of_texts)(model, adaptation, *inputs)


def _of_images(model: ViT, adaptation: Adaptation, images: UInt8[Array, "B h w 3"]) -> Float[Array, "B width"]:
    tokens = model(normalise(images), adapter=adaptation)
    return jnp.concatenate([tokens[:, 0], jnp.mean(tokens[:, 1:], axis=1)], axis=-1)


def _of_texts(
    model: TextModel,
    adaptation: Adaptation,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B width"]:
    hidden = model(tokens, adapter=adaptation, mask=mask, token_types=segments)
    counted = mask.astype(hidden.dtype)
    lengths = jnp.maximum(jnp.sum(counted, axis=1), 1.0)
    mean = jnp.einsum("btd,bt->bd", hidden, counted) / lengths[:, None]
    place = lengths.astype(int) - 1 if model.config.block.causal else jnp.zeros_like(lengths, int)
    one = jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]
    return jnp.concatenate([one, mean], axis=-1)


@partial(jax.jit, static_argnums=0)
def _statistics(graph, frozen, first, mask=None, segments=None):  # noqa: ARG001 - they change a start little
    model = nnx.merge(graph, frozen)
    return (
        model.attention_statistics(normalise(first)) if mask is None else model.attention_statistics(first, mask=mask)
    )


def logits(head: PyTree, features: Float[Array, "B width"]) -> Float[Array, "B classes"]:
    """The linear head, `features W + b`.

    Args:
        head: `{"kernel", "bias"}`, W [width, classes] and b [classes].
        features: from `pooled` or `Classifier.all_features`, [B, width].

    Returns:
        A score for each class, [B, classes].

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.classify import logits
        >>> head = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "bias": jnp.array([0.0, 0.5])}
        >>> logits(head, jnp.array([[3.0, 1.0]])).tolist()
        [[3.0, 2.5]]
    """
    return features @ head["kernel"] + head["bias"][None]


def head_loss(
    head: PyTree,
    frozen: Any,  # noqa: ARG001 - the training loop's signature
    features: Float[Array, "B width"],
    labels: Int[Array, " B"],
) -> Float[Array, ""]:
    """Mean cross-entropy of the head alone, on features computed once: what linear probing minimises.

    Args:
        head: as for `logits`.
        frozen: not used.
        features: [B, width].
        labels: class numbers, [B].

    Returns:
        The mean over the batch, in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.classify import head_loss
        >>> head = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
        >>> round(float(head_loss(head, None, jnp.ones((2, 4)), jnp.array([0, 2]))), 4)  # log 3: it knows nothing yet
        1.0986
    """
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(head, features), labels))


@partial(jax.jit, static_argnums=0)
def _features(classifier, params, frozen, *inputs):
    return classifier.features(params, frozen, *inputs)
