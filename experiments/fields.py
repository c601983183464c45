"""What the tables compare, and on what: methods, and fields with their models and data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PROBING = "head"
OURS, PROBED, SAME_SIZE = "NTK-Attention", "head only", "P-Tuning v2, a state's size"

# Adapters as `spelt` reads them, each at its usual size, and those whose size can be chosen also at that of a state of
# Z and k: {tokens} and {rank} stand for the numbers with which P-Tuning v2 and LoRA are as large in the model at hand.
METHODS: Mapping[str, str] = MappingProxyType(
    {
        PROBED: PROBING,
        "full fine-tuning": "full",
        "LoRA, r = 8": "lora:rank=8",
        "LoRA, a state's size": "lora:rank={rank},alpha={twice_rank}",
        "P-Tuning v2, 10 tokens": "tokens:length=10,start=mean",
        SAME_SIZE: "tokens:length={tokens},start=mean",
        OURS: "features:share=0.3,steps=state",
        "measure, 8 clouds": "measure:components=8,rank=2",
    }
)
# A language model has no head, and few steps: chosen on held-back rows of sst2 and agnews, as the other was on digits'.
_WITHOUT_HEAD = MappingProxyType(
    {name: method for name, method in METHODS.items() if method != PROBING} | {OURS: "features:share=0.1"}
)

# One thing changed at a time; what it is changed from is among the methods.
ABLATIONS: Mapping[str, str] = MappingProxyType(
    {
        "Z, k from 0 (a no-op)": "features:steps=state",
        OURS: METHODS[OURS],
        "share 0.1": "features:share=0.1,steps=state",
        "share 1": "features:share=1.0,steps=state",
        "whole steps for the value": "features:share=0.3",
        "scale and centre fixed": "features:share=0.3,steps=state,train_scale=False",
        "one scale, no centre": "features:share=0.3,steps=state,calibration=harmonic",
        "k by softplus": "features:share=0.3,steps=state,positive=softplus",
        "rank 1": "features:share=0.3,steps=state,rank=1",
        "rank 4": "features:share=0.3,steps=state,rank=4",
        "rank 16": "features:share=0.3,steps=state,rank=16",
        "k off (additive memory)": "features:normalised=False,steps=state",
        "phi: Taylor, degree 0": "features:share=0.3,steps=state,feature_map=taylor/0",
        "phi: 64 random features": "features:share=0.3,steps=state,feature_map=favor/64",
        "phi: 256 random features": "features:share=0.3,steps=state,feature_map=favor/256",
        "LoRA on q alone": "lora:rank=8,targets=query",
        "LoRA on v alone": "lora:rank=8,targets=value",
        "LoRA, r = 4, and NTK-Attention": "lora:rank=4+features:share=0.3,steps=state",
        **{f"{M:,} tokens": f"tokens:length={M},start=mean" for M in (1, 3, 10, 33, 100, 300, 1000)},
    }
)


@dataclass(frozen=True)
class Task:
    """A model and a data set's folder, with what differs from the defaults of `ntkprefix train`."""

    model: str
    folder: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """Tasks on which methods are compared.

    Attributes:
        tasks: by the names of their data sets.
        methods: by their names.
        tokens: the prefix tokens per layer that are as many numbers as a state, R(Hv + 1) + H + 1 of a head of width H
            for H + Hv of a token, rounded. (Training takes Hv more, see `FeatureAdapter`.)
        rank: of LoRA on q and v that is as many numbers as a state per head, rounded.
    """

    tasks: Mapping[str, Task]
    methods: Mapping[str, str]
    tokens: int
    rank: int

    def adapter(self, method: str) -> str:
        """The text of a method's adapter for the field's model, by the method's name."""
        return self.methods[method].format(tokens=self.tokens, rank=self.rank, twice_rank=2 * self.rank)


_IMAGES = {"task": "images", "size": 70, "train_rows": 1000, "test_rows": 800}
# Tokens that hold nine tenths of a set's rows, for MiniLM and for SmolLM2, whose questions have words around them; 96
# and 128 where rows are longer than that.
_LENGTHS = MappingProxyType(
    {
        "sst2": (48, 56),
        "agnews": (64, 80),
        "rte": (96, 128),
        "boolq": (96, 128),
        "cb": (96, 128),
        "copa": (40, 48),
        "wic": (32, 48),
        "wsc": (64, 80),
        "multirc": (96, 128),
        "svamp": (0, 72),
        "gsm8k": (0, 104),
        "mawps": (0, 64),
        "aqua": (0, 128),
    }
)
_LANGUAGE = ("sst2", "agnews", "rte", "boolq", "cb", "copa", "wic", "wsc", "multirc")
_MATHEMATICS = ("svamp", "gsm8k", "mawps", "aqua")
# Passes over sets so small that three would be few steps.
_PASSES = {"cb": 6, "copa": 6, "wsc": 4}


def _encoded(name: str) -> Task:
    """By a head on MiniLM."""
    options = {"length": _LENGTHS[name][0], "train_rows": 1000, "test_rows": 800, "epochs": _PASSES.get(name, 3)}
    return Task("minilm", name, {"task": name, **options})


def _answered(name: str, test_rows: int) -> Task:
    """By the likelihood of the class's word, or of the answer. A step of SmolLM2 on two cores takes seconds.

    Blocks are computed again for the gradient: a population of nine would else take tens of gigabytes.
    """
    options = {"length": _LENGTHS[name][1], "train_rows": 512, "test_rows": test_rows, "epochs": 1, "remat": True}
    return Task("smollm2", name, {"task": name, **options})


_DINOV2 = {name: Task("dinov2", name, _IMAGES) for name in ("digits", "clothing", "cifar100", "tiny_imagenet20")}
FIELDS: dict[str, Field] = {
    "vision": Field(_DINOV2, METHODS, tokens=33, rank=16),
    "language": Field({name: _encoded(name) for name in _LANGUAGE}, METHODS, tokens=17, rank=8),
    "language-smollm2": Field({name: _answered(name, 400) for name in _LANGUAGE}, _WITHOUT_HEAD, tokens=99, rank=20),
    "mathematics": Field({name: _answered(name, 200) for name in _MATHEMATICS}, _WITHOUT_HEAD, tokens=99, rank=20),
    "ablations": Field({name: _DINOV2[name] for name in ("clothing", "cifar100")}, ABLATIONS, tokens=33, rank=16),
}
