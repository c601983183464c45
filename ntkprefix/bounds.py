"""How wrong a feature prefix can be, before anything is computed."""

from __future__ import annotations

import math

from ntkprefix import checks


def taylor_error_bound(radius: float, degree: int, value_bound: float = 1.0) -> float:
    r"""A-priori error of attention through a prefix state of `feature_map("taylor", degree=p)`.

    If |beta q.p_r| <= rho for every prefix key (after recentring: |beta q.(p_r - p_mean)| <= rho), then every weight
    is right up to a factor 1 +- eps, with eps as in `taylor_weight_error`, and

    $$ \| \tilde{out}(q) - out(q) \|_\infty \le \frac{2 eps}{1 - eps} \max_i \|u_i\|_\infty, \qquad eps < 1, $$

    the maximum over all values that the query can see, **the input's among them**: an error in the prefix's mass moves
    weight to or from the input. The bound is one of exact arithmetic: rounding comes on top.

    Args:
        radius: rho, at least 0, without unit (a logit).
        degree: p, at least 0.
        value_bound: the largest absolute entry of the values, the prefix's and the input's (with recentring, of the
            values as they are).

    Returns:
        The bound, in the unit of the values; `math.inf` where eps >= 1 and the guarantee says nothing, or where it does
        not fit a float.

    Raises:
        TypeError: arguments that are not numbers, a degree that is not an integer.
        ValueError: a negative or NaN argument.

    Example:
        >>> from ntkprefix import taylor_error_bound
        >>> taylor_error_bound(0.5, degree=4) < 1.1e-3
        True
        >>> taylor_error_bound(5.0, degree=2)
        inf

    Source: Lagrange's remainder and a total-variation bound. It makes the polynomial method of arXiv 2406.14036
    explicit: degree O(rho + log M) gives an error of at most M^{-c}.
    """
    checks.non_negative("taylor_error_bound", radius=radius, degree=degree, value_bound=value_bound)
    checks.at_least(0, "taylor_error_bound", degree=degree)
    eps, largest = taylor_weight_error(radius, degree), _as_float(value_bound)
    if eps == 0 and (radius == 0 or math.isfinite(largest)):
        return 0.0
    # An eps that is too small for a float is above 0 all the same, and no bound when the values have none.
    return math.inf if eps >= 1 or math.isinf(largest) else 2 * eps / (1 - eps) * largest


def taylor_weight_error(radius: float, degree: int) -> float:
    r"""Relative error of one attention weight under the Taylor polynomial of degree p.

    $$ eps = e^{\rho} \frac{\rho^{p+1}}{(p+1)!}
       \ge \sup_{|x| \le \rho} \Bigl| 1 - e^{-x} \sum_{j \le p} \frac{x^j}{j!} \Bigr| $$

    Args:
        radius: rho, at least 0.
        degree: p, at least 0.

    Returns:
        eps; `math.inf` where it does not fit a float, 0 where it is too small for one.

    Raises:
        TypeError: arguments that are not numbers, a degree that is not an integer.
        ValueError: a negative or NaN argument.

    Example:
        >>> from ntkprefix.bounds import taylor_weight_error
        >>> round(taylor_weight_error(1.0, 2), 4)
        0.453
    """
    checks.non_negative("taylor_weight_error", radius=radius, degree=degree)
    checks.at_least(0, "taylor_weight_error", degree=degree)
    if radius == 0:
        return 0.0
    log_eps = _log_weight_error(_as_float(radius), int(degree) + 1)
    return math.exp(log_eps) if log_eps < 700 else math.inf


def taylor_degree(radius: float, tolerance: float) -> int:
    """The smallest degree whose `taylor_error_bound` is at most `tolerance` for values bounded by 1.

    Args:
        radius: rho, at least 0.
        tolerance: error to stay below, above 0, relative to the largest entry of the values.

    Returns:
        The degree p; it grows like rho + log(1/tolerance).

    Raises:
        TypeError: arguments that are not numbers.
        ValueError: a negative or infinite radius, a tolerance that is not above 0, NaN.

    Example:
        >>> from ntkprefix.bounds import taylor_degree
        >>> taylor_degree(1.0, 1e-3)
        7
    """
    checks.reachable(radius, tolerance)
    # The bound rises with the degree up to about rho and falls from there: once below the tolerance, it stays.
    low, high = -1, 0
    while taylor_error_bound(radius, high) > tolerance:
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taylor_error_bound(radius, middle) > tolerance else (low, middle)
    return high


def _log_weight_error(radius: float, terms: int) -> float:
    """log(e^r r^n / n!), or a bound of it: the factorial by Stirling's bound from below where it fits no float."""
    if terms < 10**6:
        return radius + terms * math.log(radius) - math.lgamma(terms + 1)
    log_ratio = math.log(radius) - math.log(terms)
    return _as_float(terms) * (math.exp(min(log_ratio, 700.0)) + log_ratio + 1)


def _as_float(number: float) -> float:
    """The number, infinite where it is an integer that no float can hold."""
    try:
        return float(number)
    except OverflowError:
        return math.inf
