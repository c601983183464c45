"""Forward selection against least squares that are solved anew for every candidate, in float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import (
    BESIDE,
    BETA,
    IN_CONTEXT,
    KEYS,
    PROBLEM,
    QUERIES,
    VALUES,
    G,
    H,
    K,
    M,
    compressed,
    normal,
    of_head,
    sums,
)

from ntkprefix.compress import Matching
from ntkprefix.compress.problem import Problem
from ntkprefix.compress.pursuit import pursue


def table(head, in_context=False, queries=QUERIES):
    """Weights of every token for every query, and the sums they should give."""
    queries = of_head(queries, head)
    _, total = sums(KEYS[:, head], VALUES[:, head], queries)
    if in_context:
        total = total + of_head(BESIDE.den * np.exp(BESIDE.log_scale), head)
    weights = np.exp(BETA * queries.astype(float) @ KEYS[:, head].astype(float).T) / total[:, None]
    values = VALUES[:, head].astype(float)
    size = np.sqrt((values**2).mean())
    return weights, weights @ np.concatenate([np.full((M, 1), size), values], axis=1)


def missing(weights, wanted, tokens):
    """What the best masses and values of these tokens leave of the sums."""
    columns = weights[:, tokens]
    return ((columns @ np.linalg.lstsq(columns, wanted, rcond=None)[0] - wanted) ** 2).sum()


def missing_with_one_more(weights, wanted, tokens):
    """The same beside each token there is."""
    return np.array([missing(weights, wanted, [*tokens, each]) if each not in tokens else np.inf for each in range(M)])


@pytest.mark.parametrize("problem", [PROBLEM, IN_CONTEXT], ids=["alone", "in context"])
def test_every_token_is_the_one_that_helps_most(problem):
    chosen = np.asarray(pursue(problem, 7))
    for head in range(K):
        given = table(head, problem.beside is not None)
        for step, token in enumerate(chosen[head]):
            left = missing_with_one_more(*given, list(chosen[head, :step]))
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


def test_of_many_queries_those_that_are_looked_at_stand_for_all():
    """More than are looked at, and what they ask for changes from first to last."""
    many = normal(6, 1500, K * G, H) + np.linspace(-3, 3, 1500, dtype=np.float32)[:, None, None]
    chosen = np.asarray(pursue(Problem(PROBLEM.keys, PROBLEM.values, jnp.asarray(many), None, BETA), 5))
    for head in range(K):
        # The triangle of a QR factorisation has the same least squares in fewer rows.
        both = np.linalg.qr(np.concatenate(table(head, queries=many), axis=1), mode="r")
        given, greedy = (both[:, :M], both[:, M:]), []
        for _ in chosen[head]:
            greedy.append(int(missing_with_one_more(*given, greedy).argmin()))
        least, found = missing(*given, greedy), missing(*given, chosen[head])
        assert found <= 1.3 * least, (head, found / least)


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
