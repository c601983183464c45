"""Attention in float64 NumPy, one query at a time. It shares no code with what it checks."""

import math
from fractions import Fraction

import numpy as np


def visible_keys(b, t, n, S, *, mask=None, is_causal=False, q_len=None, kv_len=None, window=None, offset=0):
    """Boolean [S]: what query t of head n in row b may see."""
    see = np.ones(S, bool)
    position = t + (offset if np.ndim(offset) == 0 else offset[b])
    for s in range(S):
        if is_causal and s > position:
            see[s] = False
        if window is not None and not (position - window[0] <= s <= position + window[1]):
            see[s] = False
        if kv_len is not None and s >= kv_len[b]:
            see[s] = False
        if q_len is not None and t >= q_len[b]:
            see[s] = False
    if mask is not None:
        see &= mask[b, n, t]
    return see


def attention(query, key, value, **options):
    """The output [B, T, N, Hv]; options as in `attention_and_residual`."""
    return attention_and_residual(query, key, value, **options)[0]


def attention_and_residual(query, key, value, *, prefix=None, bias=None, mask=None, scale=None, **visibility):
    """Output [B, T, N, Hv] and log-sum-exp [B, T, N].

    `prefix(b, n, q, beta)` returns (numerator [Hv], denominator, log scale) in float64.
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    B, T, N, H = query.shape
    S, K, Hv = key.shape[1], key.shape[2], value.shape[-1]
    beta = 1 / math.sqrt(H) if scale is None else scale
    if mask is not None:
        mask = np.broadcast_to(mask, (B, N, T, S))
    if bias is not None:
        bias = np.broadcast_to(np.asarray(bias, np.float64), (B, N, T, S))
    out, residual = np.zeros((B, T, N, Hv)), np.full((B, T, N), -np.inf)
    for b, t, n in np.ndindex(B, T, N):
        q, kv = query[b, t, n], n // (N // K)
        logits = beta * key[b, :, kv] @ q + (0 if bias is None else bias[b, n, t])
        see = visible_keys(b, t, n, S, mask=mask, **visibility)
        groups = [] if prefix is None else [prefix(b, n, q, beta)]
        if see.any():
            top = logits[see].max()
            weights = np.exp(logits[see] - top)
            groups.append((weights @ value[b, see, kv], weights.sum(), top))
        groups = [g for g in groups if g[1] != 0 or np.any(g[0])]
        if groups:
            top = max(g[2] for g in groups)
            num = sum(g[0] * math.exp(g[2] - top) for g in groups)
            den = sum(g[1] * math.exp(g[2] - top) for g in groups)
            out[b, t, n] = num / den
            residual[b, t, n] = math.log(den) + top if den > 0 else math.nan
    return out, residual


def tokens(keys, values, log_weights=None):
    """A token prefix as the oracle's `prefix`; arrays [M, K, .] or [B, M, K, .], N = K * G with `heads(N, K)`."""
    keys, values = np.asarray(keys, np.float64), np.asarray(values, np.float64)
    log_weights = np.zeros(keys.shape[:-1]) if log_weights is None else np.asarray(log_weights, np.float64)

    def share(b, kv, q, beta):
        p, u, w = (x[b] if keys.ndim == 4 else x for x in (keys, values, log_weights))
        logits = beta * p[:, kv] @ q + w[:, kv]
        if len(logits) == 0:
            return np.zeros(u.shape[-1]), 0.0, 0.0
        top = logits.max()
        return np.exp(logits - top) @ u[:, kv], np.exp(logits - top).sum(), top

    return share


def measure(log_weight, mean, covariance, value, cross):
    """Gaussian clouds from dense moments: covariance [C, K, H, H], cross-covariance [C, K, Hv, H]."""

    def share(b, kv, q, beta):
        logits = np.array(
            [
                log_weight[c, kv] + beta * q @ mean[c, kv] + 0.5 * beta**2 * q @ covariance[c, kv] @ q
                for c in range(len(mean))
            ]
        )
        top = logits.max()
        weights = np.exp(logits - top)
        values = np.stack([value[c, kv] + beta * cross[c, kv] @ q for c in range(len(mean))])
        return weights @ values, weights.sum(), top

    return share


def elu_features(Z, k, log_scale=None):
    """Z [A, R, Hv], k [A, R] under phi(x) = elu(sqrt(beta) x) + 1."""

    def share(b, head, q, beta):
        x = math.sqrt(beta) * q
        phi = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
        return phi @ Z[head], float(phi @ k[head]), 0.0 if log_scale is None else float(log_scale[head])

    return share


def together(*shares):
    """Several prefixes at once."""

    def share(b, head, q, beta):
        groups = [one(b, head, q, beta) for one in shares]
        top = max(group[2] for group in groups)
        factors = [math.exp(group[2] - top) for group in groups]
        num = sum(group[0] * factor for group, factor in zip(groups, factors, strict=True))
        return num, sum(group[1] * factor for group, factor in zip(groups, factors, strict=True)), top

    return share


def taylor_features(keys, values, degree):
    """A prefix whose exponentials are replaced by their Taylor polynomials, on keys less their mean."""
    keys, values = np.asarray(keys, np.float64), np.asarray(values, np.float64)
    centre = keys.mean(axis=0)

    def share(b, kv, q, beta):
        x = beta * (keys[:, kv] - centre[kv]) @ q
        weights = sum(x**j / math.factorial(j) for j in range(degree + 1))
        return weights @ values[:, kv], weights.sum(), beta * centre[kv] @ q

    return share


def taylor_exactly(query, keys, values, degree):
    """One query [H] at scale 1, keys [M, H], values [M]: the truncated exponentials in rational arithmetic.

    Returns the log of the denominator (None where it is not positive), the output, and by how much more the terms of
    the denominator's polynomials add up to in absolute value.
    """
    query, keys, values = (np.vectorize(Fraction, otypes=[object])(np.asarray(x, float)) for x in (query, keys, values))
    terms = [Fraction(1, math.factorial(j)) for j in range(degree + 1)]
    weights = [sum(c * x**j for j, c in enumerate(terms)) for x in keys @ query]
    absolute = sum(c * x**j for x in abs(keys) @ abs(query) for j, c in enumerate(terms))
    den = sum(weights)
    if den <= 0:
        return None, math.nan, math.inf
    bits = den.numerator.bit_length() - den.denominator.bit_length()
    log_den = math.log(den / Fraction(2) ** bits) + bits * math.log(2)
    return log_den, float(weights @ values / den), float(absolute / den)


def per_kv_head(share, groups):
    """Let query heads share the state of their key-value head."""
    return lambda b, n, q, beta: share(b, n // groups, q, beta)
