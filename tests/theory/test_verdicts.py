"""Every verdict passes on what the theorem says and fails on what contradicts it."""

import math

import numpy as np
import pytest

from theory import intervals, verdicts
from theory.measure import bound_excess, final_rate
from theory.verdicts import Finding, Verdict

LENGTHS = [2**k for k in range(6, 17, 2)]


def power(exponent, seeds=8, noise=0.05, lengths=LENGTHS):
    """Measurements that follow M^exponent, [lengths, seeds]."""
    scatter = np.random.default_rng(0).normal(size=(len(lengths), seeds))
    return np.array(lengths, float)[:, None] ** exponent * np.exp(noise * scatter)


@pytest.mark.parametrize(
    ("judge", "right", "wrong"),
    [
        (lambda values: verdicts.kernel_error(LENGTHS, values, [1e-7]), -0.5, (0.0, -0.25, -1.0)),
        (lambda values: verdicts.lazy_training(LENGTHS, values, power(-0.9)), -0.4, (0.0, 0.3)),
        (lambda values: verdicts.lazy_training(LENGTHS, power(-0.4), values), -0.9, (0.0, -0.1)),
        (lambda values: verdicts.loss_curve(LENGTHS, values), -0.5, (0.0, -0.1, 0.5)),
        (lambda values: verdicts.prediction(LENGTHS, values), -0.5, (0.0, -0.1, -1.0)),
    ],
)
def test_slopes(judge, right, wrong):
    assert judge(power(right)).status == "pass"
    assert [judge(power(exponent)).status for exponent in wrong] == ["fail"] * len(wrong)
    # Five seeds that scatter by a factor of e^3 cannot tell a slope.
    assert judge(power(right, seeds=5, noise=3.0)).status == "fail"
    diverged = power(right)
    diverged[-1, 0] = math.nan
    assert judge(diverged).status == "fail"


def test_a_kernel_that_neural_tangents_does_not_confirm_fails():
    assert verdicts.kernel_error(LENGTHS, power(-0.5), [1e-7, 2e-3]).status == "fail"


def test_eigenvalue_share():
    assert verdicts.smallest_eigenvalue([[0.1] * 5, [0.8] * 5]).status == "pass"
    assert verdicts.smallest_eigenvalue([[0.8] * 5, [0.7] * 5]).status == "fail"
    assert verdicts.smallest_eigenvalue([[0.1] * 5, [0.8, 0.8, 0.8, 0.2, 0.9]]).status == "fail"


def test_guarantee():
    good = {"excess": [[2.0] * 5, [1.0] * 5], "rate": [[0.0] * 5, [0.04, 0.05, 0.04, 0.05, 0.06]]}
    assert verdicts.guarantee(**good, guaranteed=0.01).status == "pass"
    assert verdicts.guarantee(**good, guaranteed=0.1).status == "fail"
    assert verdicts.guarantee(**(good | {"excess": [[1.0] * 5, [1.2] * 5]}), guaranteed=0.01).status == "fail"
    assert verdicts.guarantee(**(good | {"excess": [[1.0] * 5, [math.nan] * 5]}), guaranteed=0.01).status == "fail"


def settings(vary=None, law=None):
    """Smallest sufficient M is 16 everywhere, but follows a law in one setting."""
    grid = {"n": (4, 8, 16), "d": (4, 8, 16), "sigma": (0.5, 0.7, 1.0)}
    return [
        {"vary": name, "value": value, "smallest": [law(value) if name == vary else 16.0] * 5}
        for name, values in grid.items()
        for value in values
    ]


def test_requirement():
    assert verdicts.requirement(settings()).status == "pass"
    assert verdicts.requirement(settings("n", lambda n: n**2)).status == "pass"
    assert verdicts.requirement(settings("d", lambda d: d**6)).status == "fail"
    assert verdicts.requirement(settings("sigma", lambda sigma: math.exp(20 * sigma))).status == "fail"
    assert verdicts.requirement(settings("n", lambda n: math.nan if n == 16 else 16.0)).status == "fail"


def test_status():
    inside, outside = (Finding("f", intervals.Estimate(0.5, 0.4, high), (0.0, 1.0)) for high in (0.6, 1.1))
    assert Verdict("v", "c", (inside,)).status == "pass"
    assert Verdict("v", "c", (inside, outside)).status == "fail"
    assert Verdict("v", "c", (inside, outside), applies=False).status == "not applicable"


def test_bound_excess_looks_at_every_step():
    bound = 10 * 0.9 ** np.arange(50)
    assert bound_excess(bound, 0.1) == pytest.approx(1)
    loss = bound * 0.5 ** (np.arange(50) > 0)
    loss[20] = 3 * bound[20]
    assert bound_excess(loss, 0.1) == pytest.approx(3)
    loss[30] = math.inf
    assert not bound_excess(loss, 0.1) <= 2
    loss[31] = math.nan
    assert math.isnan(bound_excess(loss, 0.1))


def test_final_rate():
    assert final_rate(0.97 ** np.arange(200)) == pytest.approx(0.03)
    floored = np.maximum(0.8 ** np.arange(400), 1e-13)
    assert final_rate(floored) == pytest.approx(0.2, rel=1e-3)
    assert math.isnan(final_rate(np.array([1.0, 2.0, math.inf])))


def test_intervals_cover_as_they_say():
    rng = np.random.default_rng(0)
    means = [intervals.mean(rng.normal(size=6)) for _ in range(2000)]
    assert abs(np.mean([m.low <= 0 <= m.high for m in means]) - 0.95) < 0.02
    shares = [intervals.share(rng.random(12) < 0.7) for _ in range(2000)]
    assert 0.92 < np.mean([s.low <= 0.7 <= s.high for s in shares]) < 0.99


def test_slopes_are_fitted_to_long_prefixes():
    assert verdicts.asymptotic(LENGTHS) == slice(2, None)
    assert verdicts.asymptotic([4, 8, 16, 32]) == slice(1, None)
    early = power(-0.5)
    early[:2] = 1.0
    assert verdicts.kernel_error(LENGTHS, early, [1e-7]).status == "pass"
