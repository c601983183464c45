"""Adapt a pretrained vision transformer to images: head only, P-Tuning v2 and NTK-Attention side by side.

Every method trains on the same images from the same frozen weights, with the start and the step size that
`experiments.tuning` chose for it on a part of the training digits. P-Tuning v2 and NTK-Attention first train their head
alone for a few passes, then take the same steps in the same order; linear probing, whose features are computed once,
takes more, and so is the stronger baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import RESULTS
from ntkprefix.adapters import Adapter, FeatureAdapter, HeadAdapter, TokenAdapter, count
from ntkprefix.classify import Classifier, head_loss, logits, probe
from ntkprefix.images import ImageData, load_images, stratified
from ntkprefix.models import ViT, load_dinov2
from ntkprefix.runs import environment, progress, read_json
from ntkprefix.train import TrainConfig, train

# Of every method, the starts that it may choose from. 32 tokens are as many numbers as a state of Z and k.
METHODS: dict[str, dict[str, Adapter]] = {
    "head only": {"zero": HeadAdapter()},
    "P-Tuning v2, 10 tokens": {"zero": TokenAdapter(length=10), "mean": TokenAdapter(length=10, start="mean")},
    "P-Tuning v2, 32 tokens": {"zero": TokenAdapter(length=32), "mean": TokenAdapter(length=32, start="mean")},
    # A harmonic start is none to choose from: some heads' states would weigh e^-85 (docs/prefixes.md).
    "NTK-Attention": {"centred": FeatureAdapter()},
}
_CALIBRATION_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """What to run.

    Attributes:
        data: "digits", a `.npz` file or a folder of images (see `ntkprefix.images.load_images`).
        size: side that images are resized to, in pixels, a multiple of 14.
        train_images: at most so many training images, drawn at random; the same for every method.
        test_images: likewise for the held-out ones.
        epochs: passes over the training images.
        head_epochs: passes for linear probing, whose features are computed once: more, since they cost nothing.
        batch_size: images per step.
        probe_epochs: passes in which the head is trained alone before an adapter joins it: few, so that it fits the
            images no better than an adapter can learn from.
        head_step_size: peak step size of the head, before and beside an adapter, the same for all of them: what suits a
            prefix makes logits leap. Linear probing finds its own, as adapters do.
        seeds: one run of each method per seed, which orders the data and draws random starts.
        methods: names among `METHODS`.
    """

    data: str = "digits"
    size: int = 70
    train_images: int = 1000
    test_images: int = 800
    epochs: int = 3
    head_epochs: int = 40
    batch_size: int = 16
    probe_epochs: int = 10
    head_step_size: float = 1e-3
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = tuple(METHODS)


def main(config: VisionConfig) -> dict[str, Any]:
    """Load images and weights, and compare (see `compare`)."""
    return compare(config, load_images(config.data, size=config.size), load_dinov2())


def compare(config: VisionConfig, data: ImageData, model: ViT) -> dict[str, Any]:
    """Run every method on every seed, with progress.

    Args:
        config: what to run; its `data` and `size` are those of the images.
        data: images, of which as many are taken as the configuration says.
        model: the frozen transformer.

    Returns:
        Configuration, environment, a description of the data, one entry for every run that finished, and `failures`.
    """
    data = subset(data, config)
    chosen = read_json(RESULTS / "tuning.json")["chosen"]
    runs, failures = [], []
    with progress() as bar:
        for seed in config.seeds:
            for method in config.methods:
                this = {"method": method, "seed": seed, **chosen[method]}
                schedule = training(config, method, this["step_size"], seed)
                task = bar.add_task(method, total=None)
                watch = partial(_show, bar, task, method)
                try:
                    runs.append(
                        {
                            **this,
                            **fit(
                                model,
                                METHODS[method][this["start"]],
                                data,
                                schedule,
                                head=head_start(config, seed),
                                watch=watch,
                            ),
                        }
                    )
                except FloatingPointError as error:
                    failures.append({**this, "failure": str(error)})
    return {
        "config": asdict(config),
        "environment": environment(),
        "data": {
            "name": data.name,
            "notes": data.notes,
            "train": len(data.x_train),
            "test": len(data.x_test),
            "classes": list(data.class_names),
        },
        "runs": runs,
        "failures": failures,
    }


def subset(data: ImageData, config: VisionConfig) -> ImageData:
    """At most as many images as asked for, each class in proportion, drawn and ordered with a fixed seed."""
    train, test = (
        stratified(labels, min(most, len(labels)), seed=0)
        for labels, most in ((data.y_train, config.train_images), (data.y_test, config.test_images))
    )
    chosen = replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_test[test],
        y_test=data.y_test[test],
    )
    return shuffled(chosen, np.random.default_rng(0))


def shuffled(data: ImageData, random: np.random.Generator) -> ImageData:
    """The training images in random order: the first of them calibrate, and folders come sorted by class."""
    order = random.permutation(len(data.x_train))
    return replace(data, x_train=data.x_train[order], y_train=data.y_train[order])


def training(config: VisionConfig, method: str, step_size: float, seed: int) -> TrainConfig:
    """The training configuration of one run."""
    epochs = config.head_epochs if method == "head only" else config.epochs
    return TrainConfig(epochs=epochs, batch_size=config.batch_size, learning_rate=step_size, seed=seed)


def head_start(config: VisionConfig, seed: int) -> TrainConfig:
    """How every adapter's head is trained before the adapter is."""
    return TrainConfig(
        epochs=config.probe_epochs, batch_size=config.batch_size, learning_rate=config.head_step_size, seed=seed
    )


def fit(
    model: ViT,
    adapter: Adapter,
    data: ImageData,
    config: TrainConfig,
    *,
    head: TrainConfig,
    watch: Callable[[str, int, int], Any] = lambda *_: None,
) -> dict[str, Any]:
    """Train one classifier and test it on the held-out images.

    Args:
        model: the frozen transformer.
        adapter: what trains besides the head.
        data: images.
        config: how to train; its step size is the adapter's, and linear probing's.
        head: how the head is trained before the adapter, and its step size beside it. Unused by linear probing.
        watch: told the stage, how much of it is done, and how much there is, as work goes on.

    Returns:
        Accuracy and loss on the held-out images, which of them are `right` (a 1 or 0 each), sizes, times and the loss
        of every step. `seconds` is what training took without compiling, the features that the head starts from
        included.
    """
    rows, tests = len(data.x_train), len(data.x_test)
    classifier = Classifier(model, adapter)
    calibration = (data.x_train[:_CALIBRATION_IMAGES],)
    params = classifier.init(jax.random.key(config.seed), calibration, len(data.class_names))
    probing = config if isinstance(adapter, HeadAdapter) else head
    began = time.perf_counter()
    params, result = probe(
        classifier,
        params,
        (data.x_train,),
        data.y_train,
        probing,
        on_batch=lambda done: watch("features", done, rows),
        on_step=lambda step, loss: watch(f"head {loss:7.4f}", step, probing.steps(rows)),
    )
    before, steps = time.perf_counter() - began, config.steps(rows)
    if not isinstance(adapter, HeadAdapter):
        result = train(
            classifier.loss,
            params,
            classifier.frozen,
            (data.x_train, data.y_train),
            config,
            factors={"adapter": 1.0, "head": head.learning_rate / config.learning_rate},
            project=classifier.project,
            on_step=lambda step, loss: watch(f"loss {loss:7.4f}", step, steps),
        )
        params, before = result.params, before + result.seconds
    features = classifier.all_features(params, (data.x_test,), on_batch=lambda done: watch("testing", done, tests))
    right = np.asarray(logits(params["head"], jnp.asarray(features))).argmax(axis=1) == data.y_test
    return {
        "accuracy": float(right.mean()),
        "right": "".join(map(str, right.astype(int))),
        "held_out_loss": float(head_loss(params["head"], None, jnp.asarray(features), jnp.asarray(data.y_test))),
        "adapter_parameters": count(params["adapter"]),
        "head_parameters": count(params["head"]),
        "steps": len(result.losses),
        "seconds": round(before, 2),
        "seconds_per_step": round(result.seconds / max(len(result.losses) - 1, 1), 4),
        "losses": [round(float(loss), 5) for loss in result.losses],
    }


def _show(bar: Any, task: Any, method: str, stage: str, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total, description=f"{method:<22} {stage:<12}")
