"""Every layer's keys and values of a prompt that has been read -> a small prefix of every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from ntkprefix import checks
from ntkprefix.compress import Compressed, Method, Report, compress, judge
from ntkprefix.compress.budget import numbers_within
from ntkprefix.compress.keep import KeepAll
from ntkprefix.hosts import to_host
from ntkprefix.parallel import off_mesh
from ntkprefix.parts import Parts
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prompts.calibration import Calibration
from ntkprefix.prompts.precision import Dtype, as_stored, itemsizes
from ntkprefix.prompts.ragged import filled
from ntkprefix.prompts.sizes import everything, meeting, needs, shared_out

# How heads share a budget out.
Share = Literal["even", "need", "effect"]


# Fits are Cholesky factors of hundreds of tokens, one head's after another's: a second thread of the BLAS saves next to
# nothing, and where other processes want the cores too the two wait for each other, many times as long as they work.
@threadpool_limits.wrap(limits=1, user_api="blas")
def compress_layers(
    whole: TokenPrefix,
    asked: Calibration,
    *,
    method: str | Method,
    budget: int | str,
    share: Share = "even",
    error: float | None = None,
    dtype: Dtype = "float32",
    felt: Callable[[], Float[np.ndarray, "L draws B T N Hv"]] | None = None,
    seed: int = 0,
    on_step: Callable[[str, int, int], None] | None = None,
    parts: Parts | None = None,
) -> tuple[Any, Report]:
    """`compress_prompt` of a prompt that has been read, and of what texts asked behind it.

    Args:
        whole: the prompt's keys and values, [L, M, K, H] and [L, M, K, Hv], with weights if it has been compressed
            before.
        asked: of the same layers.
        method: as for `compress_prompt`.
        budget: likewise.
        share: likewise.
        error: likewise.
        dtype: likewise.
        felt: gives the `scores` (`ntkprefix.prompts.effects`) of the last B of the texts of T tokens that methods are
            fitted to whole (`ntkprefix.prompts.sizes.judging`); for `share="effect"`.
        seed: likewise.
        on_step: likewise.
        parts: where layers that are done are kept, and those of a call that was stopped are found.

    Returns:
        Prefixes and report, with a leading `layers` axis.

    Raises:
        TypeError: as for `compress`, or heads of several sizes whose prefixes are not weighted tokens.
        ValueError: as for `compress`, an unknown share, or `share="effect"` without `felt`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import Partial, TokenPrefix
        >>> from ntkprefix.prompts import Calibration, compress_layers
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 2, 16, 1, 4))  # of 2 layers
        >>> alone = Partial(jnp.zeros((2, 16, 1, 4)), jnp.zeros((2, 16, 1)), jnp.full((2, 16, 1), -jnp.inf))
        >>> asked = Calibration(queries, beside=alone)
        >>> small, report = compress_layers(TokenPrefix(keys, values), asked, method="attention", budget="4x")
        >>> small.keys.shape, report.error.shape
        ((2, 4, 1, 4), (2, 1))
    """
    checks.one_of("compress_prompt", "share", share, get_args(Share))
    if share == "effect" and felt is None:
        raise ValueError("compress_layers: expected felt= for share='effect', got None. Give scores, or share='need'.")
    if error is not None:
        checks.finite("compress_prompt", least=0.0, error=error)
    tell, parts = on_step or (lambda *_: None), parts or Parts()
    layers, length, heads, width = whole.keys.shape
    token = width + whole.values.shape[-1]
    sizes = itemsizes(dtype, token)
    token += whole.log_weights is not None
    even = numbers_within(budget, length=length, heads=layers * heads, token=token, **sizes._asdict())
    numbers = np.full((layers, heads), even)
    find = partial(needs, whole, asked, even, on_layer=lambda done: tell("finding needs", done, layers), parts=parts)
    found = {}
    if share == "need" or error is not None:
        found["need"] = find()
    if share == "effect":
        found["effect"] = find(felt=felt)
    if share != "even":
        numbers = shared_out(found[share], int(numbers.sum()))
    if error is not None:
        numbers = np.maximum(numbers, meeting(found["need"], error))
    chosen = as_stored(method, dtype)
    # Where shares differ, one may have room for all of a head's tokens.
    keep, differ, most = as_stored(KeepAll(), dtype), share != "even" or error is not None, everything(whole)
    made = []
    for layer in range(layers):
        tokens, of_layer = jax.tree.map(lambda array, at=layer: array[at], (whole, asked))
        methods = [keep if differ and count >= most else chosen for count in numbers[layer]]
        with off_mesh() if differ else nullcontext():
            if differ:
                # A mesh shares heads out, and cuts of single ones would have its devices wait for one another again
                # and again: every process makes all of the layer.
                tokens, of_layer = jax.tree.map(jnp.asarray, to_host((tokens, of_layer)))
            one = parts(f"layer-{layer}", partial(_layer, tokens, of_layer, numbers[layer], methods, seed + layer))
            made.append(jax.block_until_ready(one))
        tell("compressing", layer + 1, layers)
    if differ:
        made = to_host(made)
    prefixes = [part.prefix for part in made]
    if len(set(numbers.ravel())) > 1:
        lengths = [prefix.keys.shape[0] if isinstance(prefix, TokenPrefix) else 0 for prefix in prefixes]
        prefixes = [filled(prefix, max(lengths)) for prefix in prefixes]
    reports = _of_one_size([part.report for part in made])
    # All layers' are of one size, `_of_one_size`.
    itemsize = sizes.itemsize + sizes.per_head / reports[0].numbers
    reports = [
        dataclasses.replace(report, itemsize=itemsize, prompt_itemsize=sizes.prompt_itemsize) for report in reports
    ]
    return tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in (prefixes, reports))


def _layer(
    tokens: TokenPrefix,
    asked: Calibration,
    numbers: Int[np.ndarray, " K"],
    methods: list[str | Method],
    seed: int,
) -> Compressed:
    """All heads at once where they get the same, and one after another where they do not."""
    heads = len(numbers)
    if len(set(numbers)) == 1:
        both: dict[str, Any] = {"queries": asked.queries, "beside": asked.beside, "method": methods[0], "seed": seed}
        return compress(**vars(tokens), budget=f"{numbers.sum()} numbers", **both)
    group = asked.queries.shape[1] // heads
    made = []
    for head in range(heads):
        of_head = slice(head * group, (head + 1) * group)
        queries, beside = jax.tree.map(lambda leaf, at=of_head: leaf[:, at], (asked.queries, asked.beside))
        one = jax.tree.map(lambda leaf, at=head: leaf[:, at : at + 1], tokens)
        options: dict[str, Any] = {"method": methods[head], "seed": seed, "queries": queries, "beside": beside}
        made.append(compress(**vars(one), budget=f"{numbers[head]} numbers", **options))
    lengths = [part.prefix.keys.shape[0] if isinstance(part.prefix, TokenPrefix) else 0 for part in made]
    prefixes = [filled(part.prefix, max(lengths)) for part in made]
    reports = _of_one_size([part.report for part in made])
    prefix = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *prefixes)
    return Compressed(prefix, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *reports))


def judge_layers(prefixes: Any, whole: TokenPrefix, asked: Calibration) -> Report:
    """`judge` of every layer.

    Args:
        prefixes: with a leading `layers` axis.
        whole: what they stand for, [L, M, K, H].
        asked: queries none of which they were fitted to.

    Returns:
        The report, with a leading `layers` axis.
    """
    reports = []
    for layer in range(whole.keys.shape[0]):
        prefix, tokens, of_layer = jax.tree.map(lambda leaf, at=layer: leaf[at], (prefixes, whole, asked))
        report = judge(prefix, **vars(tokens), queries=of_layer.queries, beside=of_layer.beside)
        reports.append(jax.block_until_ready(report))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)


def _of_one_size(reports: list[Report]) -> list[Report]:
    """Reports that can be put together: all of the size that they have on average."""
    stored = float(np.mean([report.numbers for report in reports]))
    return [dataclasses.replace(report, numbers=stored) for report in reports]
