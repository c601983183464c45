"""The neural tangent kernel of a pretrained model in its prefix alone: does it settle as the prefix grows?

`python -m experiments.real_kernels dinov2` on handwritten digits, `... minilm --data-dir FOLDER` on texts of agnews.
The prefix is M of the model's own tokens per layer, drawn from other images or texts and weighted so that together they
count as much as one input, whatever M is; or a state (Z, k), which has no length, and as much weight.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Float, PyTree

from experiments import RESULTS, commands
from ntkprefix import checks
from ntkprefix.adapters import FeatureAdapter, HeadAdapter
from ntkprefix.classify import Classifier, pooled
from ntkprefix.images import load_images, normalise
from ntkprefix.models import load_dinov2, load_text_model
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.runs import environment, progress, write_json
from ntkprefix.texts import for_encoder, load_texts
from theory import as_matrix, model_ntk, predict_linearised
from theory.pieces import Pieces

# Of the head's regression, relative to the mean square of a feature.
_RIDGE = 0.1
MODELS = ("dinov2", "minilm")


@dataclass(frozen=True, kw_only=True)
class KernelsConfig:
    """What is measured.

    Attributes:
        model: dinov2 on images, or minilm on texts.
        data_dir: a data set's folder; scikit-learn's digits for images if absent.
        lengths: M, of the ladder of prefix lengths.
        seeds: draws of the prefix.
        rows: n, training inputs, and as many others.
        classes: the first so many classes of the data, an output each.
        steps: of gradient descent.
        step_size: times 1/lambda_max of the kernel at the start.
        pool: inputs that prefix tokens are drawn from.
        head_rows: inputs that the fixed head is fitted on.
        length: tokens of a text.
        memory: bytes of Jacobians held at once.
        out: folder of what has been measured; start again with the same one to go on.

    Raises:
        TypeError: a count that is no integer.
        ValueError: a count below 1, fewer than two seeds or classes.
    """

    model: Annotated[Literal["dinov2", "minilm"], tyro.conf.Positional] = "dinov2"
    data_dir: Path | None = None
    lengths: tuple[int, ...] = (4, 16, 64, 256)
    seeds: int = 5
    rows: int = 12
    classes: int = 4
    steps: int = 40
    step_size: float = 1.0
    pool: int = 64
    head_rows: int = 256
    length: int = 32
    memory: int = 2**30
    out: Path = Path("runs/real_kernels")

    def __post_init__(self):
        checks.at_least(1, "real_kernels", rows=self.rows, steps=self.steps, pool=self.pool, memory=self.memory)
        checks.finite("real_kernels", least=0.0, step_size=self.step_size)
        checks.at_least(2, "real_kernels", seeds=self.seeds, classes=self.classes)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(
                f"real_kernels: expected lengths of at least 1 token, got {min(self.lengths, default='none')}."
            )


class Setting(NamedTuple):
    """A model under a fixed head, and inputs: `train` and `test` of n rows each, `pool` to draw prefixes from."""

    model: Any
    head: Float[Array, "width o"]
    train: tuple[Array, ...]
    test: tuple[Array, ...]
    targets: Float[Array, "n o"]
    tokens: TokenPrefix
    tokens_per_row: float
    pool: tuple[Array, ...]
    about: str


def main(config: KernelsConfig) -> dict[str, Any]:
    """Kernels, training and linearised predictions for every prefix length and draw, and for a state (Z, k).

    Returns:
        What is written to `experiments/results/real_kernels_<model>.json`: the rows of `_summary`.

    Raises:
        OSError: data or weights cannot be read.
        ValueError: the data are not what they should be.
    """
    pieces, measured = Pieces(config.out, str(environment()["commit"])), {}
    with progress() as bar:
        task = bar.add_task(config.model, total=len(config.lengths) * config.seeds + 1)
        setting = make_setting(config)
        for M, seed in [*itertools.product(config.lengths, range(config.seeds)), (0, 0)]:
            bar.update(task, description=f"{config.model}, M = {M}, draw {seed}" if M else f"{config.model}, (Z, k)")
            # Which data is no part of the results, which name the set, but of what a piece depends on.
            settings = {**_settings(config), "data_dir": str(config.data_dir), "M": M, "seed": seed}
            measured[M, seed] = pieces.get("kernel", settings, partial(_measure, config, setting, M, seed))
            bar.advance(task)
    results = {
        "config": {**_settings(config), "lengths": config.lengths, "seeds": config.seeds},
        "environment": environment(),
        "data": setting.about,
        **_summary(config, measured),
    }
    write_json(RESULTS / f"real_kernels_{config.model}.json", results)
    return results


def _settings(config: KernelsConfig) -> dict[str, Any]:
    left_out = ("lengths", "seeds", "out", "data_dir", "memory")
    return {name: value for name, value in asdict(config).items() if name not in left_out}


def _measure(config: KernelsConfig, setting: Setting, M: int, seed: int) -> dict[str, Any]:
    """One prefix: its kernel at the start and after training, and outputs beside what the linearised model predicts."""
    outputs, start = with_prefix(setting, M, seed)
    kernel = model_ntk(outputs, start, setting.train, memory=config.memory)
    cross = model_ntk(outputs, start, setting.test, setting.train, memory=config.memory)
    at_start = {name: _at(outputs, start, getattr(setting, name)) for name in ("train", "test")}
    residual = setting.targets - at_start["train"]
    step_size = config.step_size / float(np.linalg.eigvalsh(np.asarray(as_matrix(kernel), np.float64))[-1])
    linear = predict_linearised(kernel, residual, cross, steps=config.steps, step_size=step_size)
    trained, losses = descend(outputs, start, setting, config.steps, step_size)
    after = model_ntk(outputs, trained, setting.train, memory=config.memory)
    moved = {name: _at(outputs, trained, getattr(setting, name)) - before for name, before in at_start.items()}
    predicted = {"train": linear.train[-1], "test": jnp.asarray(linear.test)[-1]}
    squares = jnp.sum((linear.train - residual[None]) ** 2, axis=(1, 2)) / 2
    return {
        "kernel": [float(f"{number:.6g}") for number in np.asarray(kernel).ravel()],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(start)),
        "losses": [float(f"{loss:.5g}") for loss in losses],
        "linear_losses": [float(f"{loss:.5g}") for loss in squares],
        "kernel_movement": float(jnp.linalg.norm(after - kernel) / jnp.linalg.norm(kernel)),
        "error": {
            name: float(jnp.linalg.norm(moved[name] - predicted[name]) / jnp.linalg.norm(moved[name])) for name in moved
        },
    }


@jax.jit
def _at(outputs, params, x):
    """Outputs, by one program for all draws: without it, the scan over layers is compiled again at every call."""
    return outputs(params, x)


def descend(
    outputs: Callable[..., Any], params: PyTree, setting: Setting, steps: int, step_size: float
) -> tuple[PyTree, list[float]]:
    """Gradient descent on half the sum of squares: parameters after it, and the loss before every step and at last."""
    losses = []
    for _ in range(steps):
        value, params = _loss_and_step(outputs, params, setting.train, setting.targets, step_size)
        losses.append(float(value))
    return params, [*losses, float(_loss_and_step(outputs, params, setting.train, setting.targets, step_size)[0])]


@jax.jit
def _loss_and_step(outputs, params, x, targets, step_size):
    def loss(params):
        return jnp.sum((outputs(params, x) - targets) ** 2) / 2

    value, gradient = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - step_size * g, params, gradient)


def with_prefix(setting: Setting, M: int, seed: int) -> tuple[Callable[..., Float[Array, "n o"]], PyTree]:
    """Outputs of the model as a function of the prefix's parameters and inputs, and the parameters' start.

    M drawn tokens that weigh as much as one input; for M = 0 a state that does so too, k = 1 and Z the mean value, of
    which Z and k train. (At k = 0, where a state is a no-op, k >= 0 has no derivative, and no kernel its training.)
    """
    graph, weights = nnx.split(setting.model)
    if M:
        drawn = np.random.default_rng(seed).integers(setting.tokens.keys.shape[1], size=M)
        start = {"keys": setting.tokens.keys[:, drawn], "values": setting.tokens.values[:, drawn]}
        fixed = {"log_weights": jnp.full(start["keys"].shape[:-1], math.log(setting.tokens_per_row / M))}
        return jax.tree_util.Partial(_Outputs(graph, _of_tokens), weights, setting.head, fixed), start
    params = Classifier(setting.model, FeatureAdapter()).init(
        jax.random.key(seed), [np.asarray(array) for array in setting.pool], 1
    )["adapter"]
    Z, k = params.pop("Z"), jnp.ones_like(params.pop("k"))
    value = jnp.mean(setting.tokens.values, axis=1)
    value = jnp.repeat(value, Z.shape[1] // value.shape[1], axis=1)
    start = {"Z": jnp.broadcast_to(value[:, :, None], Z.shape), "k": k}
    return jax.tree_util.Partial(_Outputs(graph, _of_state), weights, setting.head, params), start


@dataclass(frozen=True)
class _Outputs:
    """The function of one architecture and one kind of prefix: equal ones are compiled once."""

    graph: Any
    adapt: Callable[[PyTree], Adaptation]

    def __call__(self, weights, head, fixed, params, x):
        return pooled(nnx.merge(self.graph, weights), self.adapt({**fixed, **params}), *x) @ head


def _of_tokens(params: PyTree) -> Adaptation:
    return Adaptation(prefixes=TokenPrefix(**params))


def _of_state(params: PyTree) -> Adaptation:
    return FeatureAdapter().adapt(params)


def make_setting(config: KernelsConfig) -> Setting:
    """Model, head and inputs.

    Raises:
        OSError: data or weights cannot be read.
        ValueError: too few inputs, or data that are not what they should be.
    """
    model, inputs, labels, about = (_images if config.model == "dinov2" else _texts)(config)
    kept = np.flatnonzero(labels < config.classes)
    kept = np.random.default_rng(0).permutation(kept)
    needed = config.head_rows + config.pool + 2 * config.rows
    if len(kept) < needed:
        raise ValueError(
            f"real_kernels: expected at least {needed} inputs of {config.classes} classes, got {len(kept)}."
        )
    sizes = np.cumsum([config.head_rows, config.pool, config.rows, config.rows])
    parts = np.split(kept[: sizes[-1]], sizes[:-1])
    head_rows, pool, train, test = (tuple(jnp.asarray(array[part]) for array in inputs) for part in parts)
    one_hot = (labels[:, None] == np.arange(config.classes)).astype(np.float32) - 1 / config.classes
    tokens, per_row = pooled_tokens(model, pool)
    return Setting(
        model,
        _ridge_head(model, head_rows, one_hot[parts[0]]),
        train,
        test,
        jnp.asarray(one_hot[parts[2]]),
        tokens,
        per_row,
        pool,
        f"{about}: {config.rows} inputs of {config.classes} classes and as many others",
    )


def _images(config):
    images = load_images(config.data_dir or "digits", size=70)
    return load_dinov2(), (images.x_train,), images.y_train, images.name


def _texts(config):
    if config.data_dir is None:
        raise ValueError("real_kernels: expected --data-dir, the folder of the texts of agnews, got none.")
    rows = load_texts("agnews", config.data_dir).train[:4000]
    texts = for_encoder(rows, load_tokenizer(config.model), config.length)
    return load_text_model(config.model), tuple(texts), np.array([row.label for row in rows]), "agnews"


def pooled_tokens(model: Any, inputs: tuple[Array, ...]) -> tuple[TokenPrefix, float]:
    """Keys and values of all tokens of all inputs, [L, tokens, K, H], without padding, and tokens of the mean input."""

    def keep(query: Array, key: Array, value: Array, **_: Any) -> tuple[Array, Array]:  # noqa: ARG001
        return key, value

    if len(inputs) == 1:
        key, value = model.observe(normalise(inputs[0]), keep)
        counted = np.ones(key.shape[1:3], bool)
    else:
        key, value = model.observe(inputs[0], keep, mask=inputs[1])
        counted = np.asarray(inputs[1])
    return TokenPrefix(key[:, counted], value[:, counted]), float(counted.sum(axis=1).mean())


def _ridge_head(model: Any, inputs: tuple[Array, ...], targets: np.ndarray) -> Float[Array, "width o"]:
    """The head that is nearest to the targets by ridge regression, on features of the model without a prefix."""
    classifier = Classifier(model, HeadAdapter())
    features = np.asarray(classifier.all_features({"adapter": {}}, [np.asarray(array) for array in inputs]), np.float64)
    gram = features.T @ features
    ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return jnp.asarray(np.linalg.solve(gram + ridge, features.T @ targets), jnp.float32)


def _summary(config: KernelsConfig, measured: dict[tuple[int, int], dict[str, Any]]) -> dict[str, Any]:
    """For every length and draw: distance of the scaled kernel M K to its mean at the longest, movement, errors."""
    longest = max(config.lengths)
    limits = [longest * np.array(measured[longest, seed]["kernel"]) for seed in range(config.seeds)]
    rows = []
    for (M, seed), found in measured.items():
        row = {name: found[name] for name in ("parameters", "losses", "linear_losses", "kernel_movement", "error")}
        if M:
            # Of other draws alone, so that the longest prefix is not compared with itself.
            limit = np.mean([kernel for other, kernel in enumerate(limits) if other != seed], axis=0)
            distance = np.linalg.norm(M * np.array(found["kernel"]) - limit) / np.linalg.norm(limit)
            row["distance"] = float(distance)
        rows.append({"M": M or None, "seed": seed, **row})
    return {"rows": rows}


def slopes(results: dict[str, Any]) -> list[float]:
    """Exponents of M in the distance to the limit, one for every draw; the longest prefix is what the limit is."""
    lengths = results["config"]["lengths"]
    tokens = [row for row in results["rows"] if row["M"] is not None and row["M"] < max(lengths)]
    of_seed = [[row for row in tokens if row["seed"] == seed] for seed in range(results["config"]["seeds"])]
    return [
        float(np.polyfit(np.log([row["M"] for row in rows]), np.log([row["distance"] for row in rows]), 1)[0])
        for rows in of_seed
    ]


def command(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    return commands.run("real_kernels", KernelsConfig, main, arguments)


if __name__ == "__main__":
    sys.exit(command())
