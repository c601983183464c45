"""The seven verdicts: pure functions of measurements, each of which can fail.

The rule is the same everywhere: a finding passes when its whole 95 % interval over seeds lies within the declared
band, is undecided when a part of it does, and fails when none of it does or there is no interval. A verdict is as good
as the worst of its findings, so that a measurement too noisy to tell never passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from theory import intervals
from theory.bound import DEMANDED, within_bound
from theory.intervals import Estimate, Numbers

Band = tuple[float, float]
Status = Literal["pass", "undecided", "fail", "not applicable"]

# Sampling error of a mean over M tokens: exponent -1/2. The rest is room for finite M.
KERNEL_SLOPE: Band = (-0.6, -0.4)
# Two ways to compute one kernel in float32.
KERNEL_AGREEMENT: Band = (0.0, 1e-5)
# "With high probability", as far as a handful of seeds can say: five of five have the interval [0.57, 1].
SHARE: Band = (0.5, 1.0)
# Rising to 1 with M, or 1 all along, that share never falls: what is allowed is the interval that one unlucky seed in
# twenty has.
SHARE_FALL: Band = (0.0, 0.2)
# max_r ||w_r(t) - w_r(0)|| is M^{-1/2} times the largest of M log-normal softmax weights, whose slow growth flattens
# the slope at any M that can be run. The theorem needs it to fall.
MOVEMENT_SLOPE: Band = (-0.75, -0.05)
# The theorem's argument bounds the drift by the movement, so it must fall; opposite signs cancel its leading term, so
# it may fall as fast as 1/M.
DRIFT_SLOPE: Band = (-1.3, -0.25)
# Measured rate over guaranteed rate.
RATE_RATIO: Band = (1.0, math.inf)
# Measured rate over the one that H* predicts. What is left of the error lies along the smallest eigenvalues, which the
# theorem keeps above 3/4 of their limits; above, as much is allowed for a kernel of finite M.
PREDICTED_RATIO: Band = (0.75, 1.5)
# First order in the kernel's error at the start, -1/2, and in its drift, which falls as fast as 1/M: in between.
CURVE_SLOPE: Band = (-1.1, -0.3)
# First order in the kernel's error, so -1/2; at small M the prefix is not in its lazy regime yet.
PREDICTION_SLOPE: Band = (-0.7, -0.3)
# H*^{-1/2} H_M(0) H*^{-1/2} is a mean over tokens of positive matrices whose traces average n d, so that a matrix
# Chernoff bound on its smallest eigenvalue asks for M ~ n d log(n d); and training leaves the kernel where it is from
# M ~ ||Y||² ~ n on. One power of n and of d, then; a second is room for the log and for both at once.
GROWTH_N: Band = (-math.inf, 2.0)
GROWTH_D: Band = (-math.inf, 2.0)
# The tokens' weights e^{w.(x_i + x_j)} have the relative variance e^{sigma² |x_i + x_j|²} - 1, at most e^{4 sigma²} for
# unit inputs, and M tokens divide it by M: log M ~ 4 sigma², whose slope is at most 8 times the largest sigma.
GROWTH_SIGMA_PER_SIGMA = 8.0
# Share of settings and seeds whose smallest sufficient M the ladder brackets.
RESOLVED: Band = (0.8, 1.0)
# Rates are fitted from this length on, or to the longest three rungs when fewer reach it.
ASYMPTOTIC_FROM = 1024


@dataclass(frozen=True)
class Finding:
    """One fitted number, its interval over seeds, the declared band, and whether the one lies in the other.

    Attributes:
        name: of the number.
        estimate: the number and its interval.
        band: the lowest and the highest that pass; may be infinite.

    Example:
        >>> from theory import Finding
        >>> from theory.intervals import Estimate
        >>> band = (-0.6, -0.4)
        >>> sure, vague = Estimate(-0.5, -0.55, -0.45), Estimate(-0.5, -0.7, -0.3)
        >>> [Finding("exponent of M", estimate, band).passed for estimate in (sure, vague)]
        [True, False]
        >>> Finding("exponent of M", vague, band).undecided
        True
    """

    name: str
    estimate: Estimate
    band: Band

    @property
    def passed(self) -> bool:
        """True when the whole interval lies within the band; never for NaN."""
        low, high = self.band
        return low <= self.estimate.low and self.estimate.high <= high

    @property
    def undecided(self) -> bool:
        """True when the interval lies partly within the band, which more seeds may decide; never for NaN."""
        low, high = self.band
        return not self.passed and self.estimate.low <= high and low <= self.estimate.high


@dataclass(frozen=True)
class Verdict:
    """What one line of the theorem came to.

    Attributes:
        name: of the line, in a word.
        claim: what the line says.
        findings: the numbers that it rests on.

    Example:
        >>> from theory import Finding, Verdict
        >>> from theory.intervals import Estimate
        >>> good = Finding("exponent of M", Estimate(-0.5, -0.55, -0.45), (-0.6, -0.4))
        >>> bad = Finding("difference", Estimate(0.1, 0.1, 0.1), (0.0, 1e-5))
        >>> [Verdict("kernel", "it approaches", findings).status for findings in ((good,), (good, bad))]
        ['pass', 'fail']
        >>> Verdict("kernel", "it approaches", (bad,), outside="it is about gradient descent").holds
        True
    """

    name: str
    claim: str
    findings: tuple[Finding, ...]
    outside: str = ""
    """Why the setting is outside the theorem; empty when it is inside."""

    @property
    def status(self) -> Status:
        """`not applicable` when the setting is outside the theorem, else that of the worst finding."""
        if self.outside:
            return "not applicable"
        if all(finding.passed for finding in self.findings):
            return "pass"
        return "undecided" if all(finding.passed or finding.undecided for finding in self.findings) else "fail"

    @property
    def holds(self) -> bool:
        """True when nothing is left to be shown: the verdict passes, or does not apply."""
        return self.status in ("pass", "not applicable")


def asymptotic(lengths: Sequence[int]) -> slice:
    """The rungs that a rate is fitted to.

    Example:
        >>> from theory.verdicts import asymptotic
        >>> (256, 512, 1024, 2048, 4096)[asymptotic((256, 512, 1024, 2048, 4096))]
        (1024, 2048, 4096)
    """
    first = int(np.searchsorted(lengths, ASYMPTOTIC_FROM))
    return slice(min(first, len(lengths) - 3), None)


def kernel_error(lengths: Sequence[int], error: Numbers, agreement: Numbers) -> Verdict:
    """Verdict 1: ||H_M(0) - H*|| / ||H*|| falls as M^{-1/2}.

    Args:
        lengths: M, [lengths].
        error: relative Frobenius error, [lengths, seeds].
        agreement: relative difference of `finite_ntk` and neural_tangents, [seeds].
    """
    worst = float(np.max(np.asarray(agreement, float)))
    return Verdict(
        "kernel",
        "the kernel at the start approaches the infinite-prefix kernel as M^-1/2",
        (
            _slope("exponent of M", lengths, error, KERNEL_SLOPE),
            Finding("largest difference from neural_tangents", Estimate(worst, worst, worst), KERNEL_AGREEMENT),
        ),
    )


def smallest_eigenvalue(ratio: Numbers) -> Verdict:
    """Verdict 2: lambda_min(H_M(0)) >= 3/4 lambda, for a share of seeds that rises with M and ends close to 1.

    Args:
        ratio: lambda_min(H_M(0)) / lambda, [lengths, seeds].
    """
    return Verdict(
        "eigenvalue",
        "lambda_min of the kernel at the start is at least 3/4 of its limit, the surer the longer the prefix",
        _shares(np.asarray(ratio, float) >= 0.75),
    )


def lazy_training(lengths: Sequence[int], movement: Numbers, drift: Numbers) -> Verdict:
    """Verdict 3: weights and kernel move less, the longer the prefix.

    Args:
        lengths: M, [lengths].
        movement: max_t max_r ||w_r(t) - w_r(0)||, [lengths, seeds].
        drift: ||H_M(T) - H_M(0)|| / ||H*||, [lengths, seeds].
    """
    return Verdict(
        "lazy",
        "weights and kernel stay closer to the start, the longer the prefix",
        (
            _slope("exponent of weight movement", lengths, movement, MOVEMENT_SLOPE),
            _slope("exponent of kernel drift", lengths, drift, DRIFT_SLOPE),
        ),
    )


def guarantee(excess: Numbers, rate: Numbers, guaranteed: float, predicted: float | None) -> Verdict:
    """Verdict 4: ||F(t) - Y||² <= (1 - eta lambda/2)^t ||F(0) - Y||² at every step, for a share of seeds that rises.

    Args:
        excess: largest ratio of the left side to the right, [lengths, seeds]; NaN where training diverged.
        rate: measured fall of the loss per step at the end of training, as a share, [lengths, seeds].
        guaranteed: eta lambda / 2.
        predicted: the rate at the end of training that H* predicts; None where it predicts none.
    """
    excess, rate = np.asarray(excess, float), np.asarray(rate, float)
    findings = [
        *_shares(within_bound(excess)),
        Finding("measured over guaranteed rate", intervals.mean(rate[-1] / guaranteed), RATE_RATIO),
    ]
    if predicted is not None:
        findings.append(Finding("measured over predicted rate", intervals.mean(rate[-1] / predicted), PREDICTED_RATIO))
    claim = "the loss stays under (1 - eta lambda/2)^t at every step, the surer the longer the prefix"
    return Verdict("guarantee", claim, tuple(findings))


def loss_curve(lengths: Sequence[int], difference: Numbers) -> Verdict:
    """Verdict 5: the loss curve approaches the infinite prefix's.

    Args:
        lengths: M, [lengths].
        difference: sup_t |L_M(t) - L_inf(t)| / L(0), [lengths, seeds].
    """
    findings = (_slope("exponent of M", lengths, difference, CURVE_SLOPE),)
    return Verdict("curve", "the loss curve approaches the one that the infinite-prefix kernel predicts", findings)


def prediction(lengths: Sequence[int], error: Numbers) -> Verdict:
    """Verdict 6: predictions on held-out inputs approach kernel regression with H*.

    Args:
        lengths: M, [lengths].
        error: ||F_M(T; x') - F_inf(T; x')|| / ||F_inf(T; x')||, [lengths, seeds].
    """
    findings = (_slope("exponent of M", lengths, error, PREDICTION_SLOPE),)
    return Verdict("prediction", "held-out predictions approach kernel regression with the infinite kernel", findings)


def requirement(settings: Sequence[dict], lengths: Sequence[int]) -> Verdict:
    """Verdict 7: the smallest sufficient M grows no faster than a power of n and d and an exponential of sigma.

    Growth is that of the median over seeds: the M for which the bound holds with a probability of one half. A single
    seed may need a hundred times more, and a mean would follow it.

    Args:
        settings: mappings with `vary` ("n", "d" or "sigma"), `value`, `n`, `demanded`, the share of the first loss that
            the bound allowed after the last step, and `smallest`, the smallest M of each seed that kept the bound,
            [seeds], NaN where no rung did.
        lengths: the ladder of M.
    """
    brackets = np.array([bracket(setting, lengths) for setting in settings])
    resolved = intervals.share(np.isfinite(brackets[:, 1]))
    found = Finding("share of cases that the ladder resolves", resolved, RESOLVED)
    growths = [_growth(vary, settings, brackets) for vary in ("n", "d", "sigma")]
    return Verdict("requirement", "the smallest sufficient M is polynomial in n, d and e^sigma", (found, *growths))


def bracket(setting: dict, lengths: Sequence[int]) -> np.ndarray:
    """Between which lengths each seed's smallest sufficient M lies, [2, seeds].

    Fewer than n tokens are never enough: their M d weights cannot fit n d targets, and where they keep the bound it is
    because training was too short for it to ask for that. So the rungs are those from n on. The upper end is infinite
    where no rung is enough. Both are NaN where the first rung is enough, unless nothing shorter could be, and where the
    bound demanded too little for any length to be found out.

    Args:
        setting: as for `requirement`.
        lengths: the ladder of M.

    Example:
        >>> from theory.verdicts import bracket
        >>> case = {"n": 3, "smallest": [2, 8, float("nan")], "demanded": 0.05}
        >>> bracket(case, [2, 4, 8]).tolist()
        [[3.0, 4.0, 8.0], [4.0, 8.0, inf]]
    """
    n, ladder = setting["n"], np.asarray(lengths, float)
    smallest = np.asarray(setting["smallest"], float)
    fewest = next((M for M in ladder if n <= M), math.inf)
    high = np.where(np.isnan(smallest), math.inf, np.maximum(smallest, fewest))
    before = np.concatenate([[0.0], ladder])[np.searchsorted(ladder, high)]
    # Lengths are even: what comes before M is M - 2.
    known = ((before > 0) | (high - 2 < n)) & (setting["demanded"] <= DEMANDED)
    return np.where(known, [np.maximum(before, n), high], math.nan)


def growth_band(vary: str, values: Numbers) -> Band:
    """Band of the growth with n, d or sigma, over these values."""
    if vary == "sigma":
        return (-math.inf, GROWTH_SIGMA_PER_SIGMA * float(np.max(np.asarray(values, float))))
    return {"n": GROWTH_N, "d": GROWTH_D}[vary]


def _growth(vary: str, settings: Sequence[dict], brackets: np.ndarray) -> Finding:
    """Growth of the median over seeds, as far as the brackets tell."""
    chosen = [index for index, setting in enumerate(settings) if setting["vary"] == vary]
    values = np.array([settings[index]["value"] for index in chosen], float)
    positions = values if vary == "sigma" else np.log(values)
    low, high = np.log(brackets[chosen]).transpose(1, 0, 2)
    name = "d log M / d sigma" if vary == "sigma" else f"exponent of {vary}"
    return Finding(name, intervals.slope_of_medians(positions, low, high), growth_band(vary, values))


def _shares(holds: np.ndarray) -> tuple[Finding, Finding]:
    """Share of seeds at the largest M, and how it gets there, [lengths, seeds]."""
    return (
        Finding("share of seeds, largest M", intervals.share(holds[-1]), SHARE),
        Finding("largest fall of the share as M grows", intervals.largest_fall(holds), SHARE_FALL),
    )


def _slope(name: str, lengths: Sequence[int], values: Numbers, band: Band) -> Finding:
    rungs = asymptotic(lengths)
    return Finding(name, intervals.slope(lengths[rungs], np.asarray(values, float)[rungs]), band)
