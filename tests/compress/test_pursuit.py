"""Forward selection against least squares that are solved anew for every candidate, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import BESIDE, BETA, IN_CONTEXT, KEYS, PROBLEM, QUERIES, VALUES, H, K, M, compressed, of_head, sums

from ntkprefix.compress import Matching
from ntkprefix.compress.problem import Problem
from ntkprefix.compress.pursuit import pursue


def table(head, in_context):
    """Weights of every token for every query, and the sums they should give."""
    queries = of_head(QUERIES, head)
    _, total = sums(KEYS[:, head], VALUES[:, head], queries)
    if in_context:
        total = total + of_head(BESIDE.den * np.exp(BESIDE.log_scale), head)
    weights = np.exp(BETA * queries.astype(float) @ KEYS[:, head].astype(float).T) / total[:, None]
    values = VALUES[:, head].astype(float)
    size = np.sqrt((values**2).mean())
    return weights, weights @ np.concatenate([np.full((M, 1), size), values], axis=1)


@pytest.mark.parametrize("problem", [PROBLEM, IN_CONTEXT], ids=["alone", "in context"])
def test_every_token_is_the_one_that_helps_most(problem):
    chosen = np.asarray(pursue(problem, 7))
    for head in range(K):
        weights, wanted = table(head, problem.beside is not None)

        def missing(tokens, weights=weights, wanted=wanted):
            columns = weights[:, tokens]
            return ((columns @ np.linalg.lstsq(columns, wanted, rcond=None)[0] - wanted) ** 2).sum()

        for step, token in enumerate(chosen[head]):
            before = list(chosen[head, :step])
            left = np.array([missing([*before, each]) if each not in before else np.inf for each in range(M)])
            assert left[token] <= left.min() * (1 + 1e-3), (head, step)


def test_tokens_that_are_alike_are_not_chosen_twice():
    kinds = np.arange(M) % 4
    keys = jnp.asarray(3 * np.eye(H, dtype=np.float32)[kinds])[:, None]
    values = jnp.asarray(VALUES[:, :1])
    problem = Problem(keys, values, jnp.asarray(QUERIES[:, :1]), None, BETA)
    chosen = np.asarray(pursue(problem, 6))[0]
    assert set(kinds[chosen[:4]]) == {0, 1, 2, 3}
    # Then nothing is left to explain: others, and each once.
    assert len(set(chosen)) == 6


def test_of_many_queries_some_are_looked_at():
    many = jax.tree.map(lambda leaf: jnp.tile(leaf, (40, *[1] * (leaf.ndim - 1))), IN_CONTEXT.queries)
    chosen = pursue(Problem(IN_CONTEXT.keys, IN_CONTEXT.values, many, None, BETA), 5)
    assert chosen.shape == (K, 5)


def test_matching_the_chosen_is_better_than_matching_the_most_looked_at():
    errors = {
        choose: compressed(
            KEYS, VALUES, method=Matching(choose, in_context=True), budget=10, queries=QUERIES, beside=BESIDE
        ).report.error.mean()
        for choose in ("attention", "pursuit")
    }
    assert errors["pursuit"] < errors["attention"], errors
    with pytest.raises(ValueError, match="unknown choice 'all'; expected one of attention, pursuit"):
        Matching("all")
