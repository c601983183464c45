"""Every verdict passes on what the theorem says, fails on what contradicts it, and is undecided in between."""

import math

import numpy as np
import pytest

from theory import Config, intervals, verdicts
from theory.bound import bound_excess, steps_to_demand
from theory.measure import final_rate
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
    # Five seeds that scatter by a factor of e^3 cannot tell a slope, but twenty thousand can, and a wrong one too.
    assert judge(power(right, seeds=5, noise=3.0)).status == "undecided"
    assert judge(power(right, seeds=20_000, noise=3.0)).status == "pass"
    assert judge(power(wrong[0], seeds=20_000, noise=3.0)).status == "fail"
    diverged = power(right)
    diverged[-1, 0] = math.nan
    assert judge(diverged).status == "fail"


def test_a_kernel_that_neural_tangents_does_not_confirm_fails():
    assert verdicts.kernel_error(LENGTHS, power(-0.5), [1e-7, 2e-3]).status == "fail"


def test_eigenvalue_share():
    assert verdicts.smallest_eigenvalue([[0.1] * 5, [0.8] * 5]).status == "pass"
    assert verdicts.smallest_eigenvalue([[0.8] * 5, [0.7] * 5]).status == "fail"
    # Four of five seeds may be a half of all.
    assert verdicts.smallest_eigenvalue([[0.1] * 5, [0.8, 0.8, 0.8, 0.2, 0.9]]).status == "undecided"


def test_guarantee():
    good = {"excess": [[2.0] * 5, [1.0] * 5], "rate": [[0.0] * 5, [0.04, 0.05, 0.04, 0.05, 0.06]]}
    good |= {"guaranteed": 0.01, "predicted": 0.05}
    assert verdicts.guarantee(**good).status == "pass"
    for change in (
        {"guaranteed": 0.1},
        {"predicted": 0.1},
        {"predicted": 0.025},
        {"excess": [[1.0] * 5, [1.2] * 5]},
        {"excess": [[1.0] * 5, [math.nan] * 5]},
    ):
        assert verdicts.guarantee(**(good | change)).status == "fail", change
    # Where nothing is predicted, nothing is compared with it.
    assert len(verdicts.guarantee(**(good | {"predicted": None})).findings) == 3


def of_twenty(*counts):
    """Which of 20 seeds hold, where so many do at each length, [lengths, seeds]."""
    return np.arange(20) < np.array(counts)[:, None]


SHARES = [
    ("rises", of_twenty(0, 12, 18, 20), "pass"),
    ("rises by one seed", of_twenty(19, 20, 20, 20), "pass"),
    ("is 1 all along", of_twenty(20, 20, 20, 20), "pass"),
    ("is 1 but for one unlucky seed", of_twenty(20, 20, 19, 20), "pass"),
    ("falls, to a share that is enough by itself", of_twenty(20, 19, 18, 17), "undecided"),
    ("falls and recovers", of_twenty(20, 14, 20, 20), "undecided"),
    ("falls far and recovers", of_twenty(20, 9, 20, 20), "fail"),
]


@pytest.mark.parametrize(("holds", "status"), [case[1:] for case in SHARES], ids=[case[0] for case in SHARES])
def test_shares_must_rise(holds, status):
    rate = np.full(holds.shape, 0.05)
    for verdict in (
        verdicts.smallest_eigenvalue(np.where(holds, 0.9, 0.5)),
        verdicts.guarantee(np.where(holds, 1.0, math.nan), rate, guaranteed=0.01, predicted=0.05),
    ):
        assert verdict.findings[0].passed
        assert verdict.findings[1].passed == (status == "pass"), verdict.findings[1]
        assert verdict.status == status


LADDER = [2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, 4096]


def settings(vary=None, law=None, otherwise=16.0):
    """Smallest sufficient M is the same everywhere, but follows a law in one setting."""
    grid = {"n": (4, 8, 16), "d": (4, 8, 16), "sigma": (0.5, 0.7, 1.0)}
    return [
        {
            "vary": name,
            "value": value,
            "n": value if name == "n" else 8,
            "smallest": [law(value) if name == vary else otherwise] * 5,
            "demanded": 0.05,
        }
        for name, values in grid.items()
        for value in values
    ]


@pytest.mark.parametrize(
    ("vary", "law", "status"),
    [
        (None, None, "pass"),
        ("n", lambda n: n**1.5, "pass"),
        ("d", lambda d: 4 * d, "pass"),
        ("sigma", lambda sigma: 16 * math.exp(4 * sigma**2), "pass"),
        ("n", lambda n: n**3, "fail"),
        ("d", lambda d: d**2.5, "fail"),
        ("sigma", lambda sigma: 8 * math.exp(12 * (sigma - 0.5)), "fail"),
        # Two of three values lie above the ladder, which then has room for less than the band.
        ("sigma", lambda sigma: 16 * math.exp(10 * sigma), "undecided"),
        ("n", lambda n: math.nan if n == 16 else 16.0, "fail"),
        ("d", lambda d: math.nan if d == 4 else 16.0, "fail"),
    ],
)
def test_requirement(vary, law, status):
    verdict = verdicts.requirement(settings(vary, law), LADDER)
    assert verdict.status == status, verdict.findings


def test_a_ladder_that_starts_too_high_resolves_nothing():
    at_the_first_rung = settings(otherwise=64.0)
    verdict = verdicts.requirement(at_the_first_rung, [64, 128, 256])
    assert not any(finding.passed for finding in verdict.findings)
    assert verdict.findings[0].estimate.value == 0
    # On a ladder with shorter prefixes, which fail, the same numbers are known.
    assert verdicts.requirement(at_the_first_rung, [32, 64, 128, 256]).status == "pass"


@pytest.mark.parametrize(
    ("n", "smallest", "ladder", "between"),
    [
        (2, 2.0, [2, 4, 8], (2.0, 2.0)),  # nothing is shorter
        (3, 8.0, [2, 4, 8], (4.0, 8.0)),
        (7, 8.0, [8, 16, 32], (7.0, 8.0)),  # 6 tokens cannot fit 7 targets
        (6, 8.0, [8, 16, 32], None),  # 6 might do
        (8, 2.0, [2, 4, 16], (8.0, 16.0)),  # 2 and 4 tokens did not train long enough to be found out
        (8, math.nan, [2, 4, 16], (16.0, math.inf)),
        (64, 4.0, [2, 4, 16], (64.0, math.inf)),
    ],
)
def test_bracket_of_the_smallest_sufficient_length(n, smallest, ladder, between):
    setting = {"n": n, "smallest": [smallest], "demanded": 0.1}
    np.testing.assert_array_equal(verdicts.bracket(setting, ladder)[:, 0], between or (math.nan, math.nan))
    # A bound that hardly asked for anything finds nothing out.
    assert np.isnan(verdicts.bracket(setting | {"demanded": 0.3}, ladder)).all()


def test_rungs_are_not_exact():
    """All seeds on one rung agree, but no better than the ladder is fine."""
    coarse, fine = ([2, 4, 16, 64], [2, 4, *range(6, 65, 2)])
    widths = []
    for ladder in (coarse, fine):
        exponent = verdicts.requirement(settings("n", lambda n: max(16.0, 4.0 * n)), ladder).findings[1].estimate
        assert exponent.low < exponent.value < exponent.high
        widths.append(exponent.high - exponent.low)
    assert widths[0] > 4 * widths[1], widths
    # Each log is off by half of log 4 at most: exact places of the same slope lie within.
    assert widths[0] == pytest.approx(math.log(4) * 2 * math.log(2) / (2 * math.log(2) ** 2), rel=0.5)


def test_a_seed_above_the_ladder_does_not_move_the_median():
    far = settings()
    for setting in far:
        setting["smallest"] = [16.0] * 9 + [math.nan]
    verdict = verdicts.requirement(far, LADDER)
    assert verdict.findings[1].estimate.high < 1
    assert verdict.status == "pass"
    for setting in far:
        setting["smallest"] = [16.0] * 7 + [math.nan] * 3
    # Too many: another ten seeds could have given a median above it, and too few cases are resolved.
    verdict = verdicts.requirement(far, LADDER)
    assert verdict.findings[1].undecided
    assert verdict.status == "fail"


def test_slope_of_medians():
    rng = np.random.default_rng(0)
    positions, covered = np.array([0.0, 1.0, 3.0]), []
    for _ in range(200):
        exact = 0.7 * positions[:, None] + rng.normal(size=(3, 9))
        below = rng.uniform(0, 0.5, size=(3, 9))
        slope = intervals.slope_of_medians(positions, exact - below, exact - below + 0.5)
        covered.append(slope.low <= 0.7 <= slope.high)
    assert np.mean(covered) > 0.93
    nothing_known = intervals.slope_of_medians(positions, exact, np.full_like(exact, np.nan))
    assert np.isnan(nothing_known).all()


def test_steps_to_demand():
    steps = steps_to_demand(0.05, 0.001)
    assert 0.999**steps <= 0.05 < 0.999 ** (steps - 1)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("vary", ["n", "d", "sigma"])
def test_every_growth_can_fail_on_the_shipped_ladders(vary, quick):
    config = Config(quick=quick)
    ladder, values = config.scaling_lengths, np.array(getattr(config, f"scaling_{vary}"), float)
    positions = values if vary == "sigma" else np.log(values)
    steepest = np.where(positions > positions.mean(), ladder[-1], ladder[0])
    planted = [
        {
            "vary": vary,
            "value": value,
            "n": int(value) if vary == "n" else config.n,
            "smallest": [float(M)] * 5,
            "demanded": 0.05,
        }
        for value, M in zip(values, steepest, strict=True)
    ]
    others = [setting for setting in settings(otherwise=64.0) if setting["vary"] != vary]
    growths = {finding.name: finding for finding in verdicts.requirement(planted + others, ladder).findings[1:]}
    finding = next(finding for name, finding in growths.items() if name.endswith(vary))
    assert finding.estimate.value > finding.band[1], finding
    assert [other.passed for other in growths.values()].count(False) == 1


def test_status():
    inside, outside = (Finding("f", intervals.Estimate(0.5, 0.4, high), (0.0, 1.0)) for high in (0.6, 1.1))
    beyond, unknown = (Finding("f", intervals.Estimate(x, x, x), (0.0, 1.0)) for x in (2.0, math.nan))
    assert [finding.undecided for finding in (inside, outside, beyond, unknown)] == [False, True, False, False]
    assert Verdict("v", "c", (inside,)).status == "pass"
    assert Verdict("v", "c", (inside, outside)).status == "undecided"
    # One that is contradicted, or has no interval at all, is not made up for by others.
    assert Verdict("v", "c", (inside, outside, beyond)).status == "fail"
    assert Verdict("v", "c", (outside, unknown)).status == "fail"
    assert Verdict("v", "c", (inside, outside), outside="reason").status == "not applicable"


def test_a_planted_growth_fails_where_its_interval_lies_outside_and_is_undecided_where_it_straddles():
    """Seeds one rung apart, about a cubic law; and about a law so near the band that they cannot tell."""

    def scattered(exponent):
        planted = settings("n", lambda n: n**exponent)
        for setting in planted:
            middle = int(np.searchsorted(fine, setting["smallest"][0]))
            setting["smallest"] = [float(fine[middle + offset]) for offset in (-1, 0, 0, 0, 0, 1)]
        return verdicts.requirement(planted, fine)

    fine = list(range(2, 8192, 2))
    for exponent, status in ((3.0, "fail"), (2.3, "fail"), (2.0, "undecided"), (1.5, "pass")):
        verdict = scattered(exponent)
        assert verdict.status == status, (exponent, verdict.findings)
        assert verdict.holds == (status == "pass")
        finding = verdict.findings[1]
        assert finding.band == verdicts.GROWTH_N
        assert (finding.estimate.low > finding.band[1]) == (status == "fail"), finding


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


def test_largest_fall():
    fall = intervals.largest_fall(of_twenty(10, 18, 14, 20))
    assert fall.value == pytest.approx(0.2)
    assert 0 < fall.low < 0.2 < fall.high < 0.5
    assert intervals.largest_fall(of_twenty(3, 3, 17)) == (0, 0, 0)


def test_slopes_are_fitted_to_long_prefixes():
    assert verdicts.asymptotic(LENGTHS) == slice(2, None)
    assert verdicts.asymptotic([4, 8, 16, 32]) == slice(1, None)
    early = power(-0.5)
    early[:2] = 1.0
    assert verdicts.kernel_error(LENGTHS, early, [1e-7]).status == "pass"
