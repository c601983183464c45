"""What `ntkprefix train` trains and tests: classes of images or texts by a head, or answers by a language model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from safetensors.numpy import save

from ntkprefix import checks
from ntkprefix.adapters import Adapter, HeadAdapter, step_factors
from ntkprefix.classify import Classifier, head_loss, logits, probe
from ntkprefix.fingerprints import of_data, of_model
from ntkprefix.hosts import to_host
from ntkprefix.images import ImageData, load_images, stratified
from ntkprefix.language import LanguageTask
from ntkprefix.models import ViT, load_dinov2, load_text_model
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.parallel import adapter_specs
from ntkprefix.runs import write_bytes
from ntkprefix.texts import Answers, Example, for_decoder, for_encoder, load_texts
from ntkprefix.train import TrainConfig, TrainResult

# Ends a free answer, in training as in what is generated.
_END = "\n"
# Classes that a language model tells apart by whole names.
_SPELT = 100
# Rows that an adapter's start is calibrated on.
_CALIBRATION = 32

# Told the stage of a job, how much of it is done, and how much there is.
Watch = Callable[[str, int, int], Any]


class Start(NamedTuple):
    """Where an adapter's training starts.

    Attributes:
        params: the adapter's under `adapter`.
        probing: what training the head alone left; None where it was not trained.
    """

    params: PyTree
    probing: TrainResult | None


@runtime_checkable
class Job(Protocol):
    """A model, its data, and what is minimised.

    Attributes:
        about: the data in words.
        train: arrays of the training rows.
        frozen: the model's weights.
        numbers_per_token: what one prefix token in every layer takes, in numbers.
    """

    about: str
    train: tuple[np.ndarray, ...]
    frozen: PyTree
    numbers_per_token: int

    def divided(self, config: Any) -> Job:
        """The same with what this configuration chooses of the training rows to train on and to hold back.

        Programs that are compiled for one serve the other.
        """
        ...

    def fingerprints(self) -> dict[str, str]:
        """What tells its data, those to test on too, and its model from others."""
        ...

    def start(self, config: Any, watch: Watch, metrics: Path | None = None, *, probing: bool = True) -> Start:
        """What to train from; `metrics` is a file for the steps of the head, which is not trained without `probing`."""
        ...

    def loss(self, params: PyTree, frozen: PyTree, *rows: Any) -> Any:
        """As `ntkprefix.train` takes it."""
        ...

    def project(self, params: PyTree) -> PyTree:
        """The nearest allowed parameters."""
        ...

    def factors(self, params: PyTree, of_head: float) -> PyTree:
        """Of the step size, for the parts of the parameters."""
        ...

    def specs(self, adapter: PyTree, mesh: Mesh) -> PyTree:
        """How the adapter's parameters are shared out on a mesh."""
        ...

    def validate(self, params: PyTree) -> float:
        """Loss on the training rows held back, in nats."""
        ...

    def test(self, params: PyTree, watch: Watch) -> dict[str, Any]:
        """What is found on the test rows: numbers, and as `right` a 1 or 0 for each row."""
        ...

    def save(self, params: PyTree, out: Path) -> None:
        """Write what is trained besides the adapter."""
        ...


def job_of(config: Any, adapter: Adapter, mesh: Mesh | None = None) -> Job:
    """Load model and data; the model's weights onto the mesh, if there is one.

    Raises:
        OSError: they cannot be read.
        ValueError: they are not what they should be, or do not go together.
    """
    options = {"dtype": jnp.dtype(config.dtype), "remat": config.remat, "mesh": mesh}
    if config.task == "images":
        images = load_images(config.data_dir or "digits", size=config.size)
        model = load_dinov2(None if config.model == "dinov2" else config.model, **options)
        return image_job(config, adapter, images, model)
    texts = load_texts(config.task, config.data_dir)
    model, tokenizer = load_text_model(config.model, **options), load_tokenizer(config.model)
    if model.config.head != "none":
        if isinstance(adapter, HeadAdapter):
            raise ValueError("train: expected an adapter other than head for a language model, which has no such head.")
        return _Answers(config, model, adapter, tokenizer, texts)
    rows, test_rows = (
        (for_encoder(part, tokenizer, config.length), np.array([example.label for example in part], np.int32))
        for part in (texts.train, texts.test)
    )
    names = tuple(choice.strip() for choice in texts.choices)
    return _Classes(config, adapter, model, rows, test_rows, names, config.task)


def image_job(config: Any, adapter: Adapter, images: ImageData, model: ViT) -> Job:
    """A job on images and a model that are loaded already."""
    train, test = (((x,), y) for x, y in ((images.x_train, images.y_train), (images.x_test, images.y_test)))
    return _Classes(config, adapter, model, train, test, images.class_names, images.name)


class _Classes:
    """A head on a frozen model: images, or texts of an encoder."""

    def __init__(self, config, adapter, model, train, test, names, title):
        classifier = Classifier(model, adapter)
        self._classifier, self._adapter, self._names, self._config = classifier, adapter, names, model.config
        (inputs, labels), (test_inputs, test_labels) = train, test
        chosen = _shuffled(config, labels)
        self._title, self._all = title, tuple(array[chosen] for array in (*inputs, labels))
        tested = _chosen(config.test_rows, test_labels, seed=0)
        self._test = (*(array[tested] for array in test_inputs), test_labels[tested])
        self.frozen = classifier.frozen
        self.loss, self.project = classifier.loss, classifier.project
        self.numbers_per_token = _numbers_per_token(model)
        self._divide(config)

    def _divide(self, config):
        held = _held_back(config, self._all[-1])
        self.train, self._held = (tuple(array[rows] for array in self._all) for rows in (~held, held))
        self.about = f"{self._title}: {_rows(self.train, self._held, self._test)}, {len(self._names)} classes"

    def divided(self, config):
        return _divided(self, config)

    def fingerprints(self):
        return _fingerprints(self._config, self.frozen, self.train, self._held, self._test)

    def start(self, config, watch, metrics=None, *, probing=True):
        *inputs, labels = self.train
        calibration = [array[:_CALIBRATION] for array in inputs]
        params = self._classifier.init(jax.random.key(config.seed), calibration, len(self._names))
        if not probing:
            return Start(params, None)
        head = TrainConfig(
            epochs=config.head_epochs,
            batch_size=config.batch_size,
            learning_rate=config.head_learning_rate,
            seed=config.seed,
        )
        rows, steps = len(labels), head.steps(len(labels))
        try:
            return Start(
                *probe(
                    self._classifier,
                    params,
                    inputs,
                    labels,
                    head,
                    metrics=metrics,
                    on_batch=lambda done: watch("features", done, rows),
                    on_step=lambda step, loss: watch(f"head {loss:7.4f}", step, steps),
                )
            )
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} This is of the head alone: its step size is head_learning_rate."
            ) from error

    def factors(self, params, of_head):
        return {"adapter": step_factors(self._adapter, params["adapter"]), "head": of_head}

    def specs(self, adapter, mesh):
        return adapter_specs(adapter, self._adapter, self._config, mesh.shape)

    def validate(self, params):
        return self._judge(params, self._held)["loss"]

    def test(self, params, watch):
        rows = len(self._test[-1])
        return self._judge(params, self._test, lambda done: watch("testing", done, rows))

    def _judge(self, params, rows, on_batch=None):
        *inputs, labels = rows
        features = jnp.asarray(self._classifier.all_features(params, inputs, on_batch=on_batch))
        right = to_host(logits(params["head"], features)).argmax(axis=1) == labels
        return {
            "accuracy": float(np.mean(right)),
            "loss": float(head_loss(params["head"], None, features, jnp.asarray(labels))),
            "right": _digits(right),
        }

    def save(self, params, out):
        head = to_host(params["head"])
        write_bytes(out / "head.safetensors", save(head, metadata={"classes": "\n".join(self._names)}))


class _Answers:
    """Answers by a language model."""

    def __init__(self, config, model, adapter, tokenizer, texts):
        self._tokenizer, self._adapter, self._config = tokenizer, adapter, model.config
        self._choices, self._spelt = None, []
        labels, test_labels = (np.array([example.label for example in part]) for part in (texts.train, texts.test))
        tested = _chosen(config.test_rows, test_labels, seed=0)
        test = _take(texts.test, tested)
        end = "" if texts.choices else _END
        self._test = for_decoder(test, tokenizer, config.length, end=end)
        self._wanted = [example.answer.strip() for example in test]
        if texts.choices:
            self._labels = test_labels[tested]
            self._choices = np.array([tokenizer.encode(choice, special=False)[0] for choice in texts.choices])
            if len(set(self._choices.tolist())) < len(self._choices):
                # Such as numbers, which begin alike: told apart by all their tokens, in a pass over the rows for each.
                checks.at_most(_SPELT, "train", **{"classes whose names begin with the same token": len(texts.choices)})
                self._spelt = [
                    for_decoder([replace(row, answer=choice) for row in test], tokenizer, config.length)
                    for choice in texts.choices
                ]
        chosen = _shuffled(config, labels)
        self._all = for_decoder(_take(texts.train, chosen), tokenizer, config.length, end=end)
        self._title, self._train_labels = texts.name, labels[chosen]
        parts = (self._all, self._test, *self._spelt)
        longest = max(int((part.lengths - part.starts).max(initial=1)) for part in parts)
        self._task = LanguageTask(model, adapter, longest)
        self.frozen, self.loss, self.project = self._task.frozen, self._task.loss, self._task.project
        self.numbers_per_token = _numbers_per_token(model)
        self._divide(config)

    def _divide(self, config):
        held = _held_back(config, self._train_labels)
        train, self._held = (Answers(*(array[rows] for array in self._all)) for rows in (~held, held))
        self.train = tuple(train)
        self.about = f"{self._title}: {_rows(train, self._held, self._test)}"

    def divided(self, config):
        return _divided(self, config)

    def fingerprints(self):
        return _fingerprints(self._config, self.frozen, self.train, self._held, self._test)

    def start(self, config, watch, metrics=None, *, probing=True):  # noqa: ARG002 - there is no head that starts first
        calibration = type(self._held)(*(array[:_CALIBRATION] for array in self.train))
        return Start(self._task.init(jax.random.key(config.seed), calibration), None)

    def factors(self, params, of_head):  # noqa: ARG002
        return {"adapter": step_factors(self._adapter, params["adapter"])}

    def specs(self, adapter, mesh):
        return adapter_specs(adapter, self._adapter, self._config, mesh.shape)

    def validate(self, params):
        return self._loss(params, self._held)

    def test(self, params, watch):
        rows = len(self._test.starts)

        def on_batch(done):
            watch("testing", done, rows)

        found = {"loss": self._loss(params, self._test, on_batch)}
        if self._choices is not None:
            if self._spelt:
                said = [self._task.log_likelihoods(params, each, on_batch=on_batch) for each in self._spelt]
                chosen = np.argmax(said, axis=0)
            else:
                chosen = self._task.choose(params, self._test, self._choices, on_batch=on_batch)
            right = chosen == self._labels
            return {"accuracy": float(np.mean(right)), **found, "right": _digits(right)}
        made = self._task.generate(params, self._test, self._task.longest, on_batch=on_batch)
        right = [
            _first_line(self._tokenizer.decode(tokens)) == wanted
            for tokens, wanted in zip(made, self._wanted, strict=True)
        ]
        return {"exact_match": float(np.mean(right)), **found, "right": _digits(right)}

    def _loss(self, params, rows, on_batch=None):
        """Mean over the answers' tokens, in nats."""
        total = self._task.log_likelihoods(params, rows, on_batch=on_batch).sum()
        return float(-total / (rows.lengths - rows.starts).sum())

    def save(self, params, out):
        """There is nothing besides the adapter."""


def _digits(right: Sequence[bool] | np.ndarray) -> str:
    return "".join(str(int(each)) for each in right)


def _first_line(text: str) -> str:
    return text.strip().partition(_END)[0].strip()


def _take(rows: Sequence[Example], chosen: np.ndarray) -> list[Example]:
    return [rows[index] for index in chosen]


def _chosen(most: int, labels: np.ndarray, seed: int) -> np.ndarray:
    return np.flatnonzero(stratified(labels, min(most or len(labels), len(labels)), seed))


def _shuffled(config: Any, labels: np.ndarray) -> np.ndarray:
    """Which training rows there are, in an order of no meaning: files come sorted, and the first rows calibrate."""
    return np.random.default_rng(0).permutation(_chosen(config.train_rows, labels, seed=0))


def _held_back(config: Any, labels: np.ndarray) -> np.ndarray:
    """Of these rows, those that decide when to stop, as booleans."""
    if not config.patience:
        return np.zeros(len(labels), bool)
    count = max(1, round(config.held_back * len(labels)))
    if count >= len(labels):
        raise ValueError(
            f"train: expected training rows besides those held back for patience, got {count} held back of "
            f"{len(labels)}, which leaves 0. Give a smaller held_back, more train_rows, or no patience."
        )
    return stratified(labels, count, config.seed)


def _divided(job: Any, config: Any) -> Any:
    other = copy.copy(job)
    other._divide(config)
    return other


def _fingerprints(config: Any, weights: PyTree, *rows: Any) -> dict[str, str]:
    return {"fingerprint of the data": of_data(rows), "fingerprint of the model": of_model(config, weights)}


def _rows(train: Any, held: Any, test: Any) -> str:
    held_back = f", {len(held[0]):,} held back" if len(held[0]) else ""
    return f"{len(train[0]):,} training rows{held_back}, {len(test[0]):,} test rows"


def _numbers_per_token(model: Any) -> int:
    block = model.config.block
    return 2 * model.config.layers * block.kv_heads * block.head_width
