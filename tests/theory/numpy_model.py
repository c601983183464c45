"""The stylised model in float64 NumPy, by loops and the chain rule: shares no code and no formula with `theory`."""

import numpy as np


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def model(W, a, x):
    W, a, x = (np.asarray(array, np.float64) for array in (W, a, x))
    outputs = []
    for point in x:
        S = softmax(W @ point)
        outputs.append(np.sqrt(len(W)) * sum(a[r] * S[r] * W[r] for r in range(len(W))))
    return np.array(outputs)


def jacobian(W, a, x):
    """dF_k(x_i)/dw_rj, [n, d, M, d]: through the value, and through every softmax weight."""
    W, a, x = (np.asarray(array, np.float64) for array in (W, a, x))
    M, d = W.shape
    result = np.zeros((len(x), d, M, d))
    for i, point in enumerate(x):
        S = softmax(W @ point)
        through_softmax = np.diag(S) - np.outer(S, S)
        for r in range(M):
            for k in range(d):
                result[i, k, r, k] += a[r] * S[r]
                result[i, k, r] += (a * W[:, k]) @ through_softmax[:, r] * point
    return np.sqrt(M) * result


def kernel(W, a, x1, x2):
    return np.einsum("ikrm,jlrm->ijkl", jacobian(W, a, x1), jacobian(W, a, x2))


def descend(W, a, x, y, steps, step_size):
    """Losses and the trained W of plain gradient descent."""
    W, y = np.array(W, np.float64), np.asarray(y, np.float64)
    losses = []
    for _ in range(steps):
        residual = model(W, a, x) - y
        losses.append(0.5 * np.sum(residual**2))
        W = W - step_size * np.einsum("ik,ikrm->rm", residual, jacobian(W, a, x))
    losses.append(0.5 * np.sum((model(W, a, x) - y) ** 2))
    return np.array(losses), W


def relative(value, reference):
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)
