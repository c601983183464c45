"""PyTorch's attention, for `benchmarks.attention`.

It runs in an environment of its own, with PyTorch and without this package. Cases are `fused`, PyTorch's own, and
`formula`, what NTK-Attention's paper states, with all logits in memory.
"""

import functools
import sys

import torch
from worker import serve


@functools.cache
def inputs(queries, heads, width, gradient):
    """Query, key, value and the output's gradient, [1, N, T, H], and a state [N, H, H], [N, H]."""
    torch.manual_seed(0)
    arrays = [torch.randn(1, heads, queries, width) for _ in range(4)]
    state = [torch.rand(heads, width, width), torch.rand(heads, width)]
    for array in (*arrays[:3], *state):
        array.requires_grad_(gradient)
    return arrays, state


def fused(query, key, value, state):  # noqa: ARG001 - it has no prefix
    """PyTorch's own."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def formula(query, key, value, state):
    """(A v + phi(q) Z) / (A 1 + phi(q) k), A = exp(q k^T / sqrt(H)) below the diagonal, phi(x) = elu(x) + 1."""
    width = query.shape[-1]
    Z, k = state
    scaled = query * width**-0.25
    weights = torch.exp(scaled @ (key * width**-0.25).transpose(-1, -2)).tril()
    phi = torch.nn.functional.elu(scaled) + 1
    num = weights @ value + phi @ Z
    den = weights.sum(-1, keepdim=True) + (phi @ k.abs()[..., None])
    return num / den


def prepare(case, queries, heads, width, gradient):
    """What runs one case."""
    (query, key, value, d_out), state = inputs(queries, heads, width, gradient)
    call = {"fused": fused, "formula": formula}[case]
    wanted = [query, key, value] + (state if case == "formula" else [])

    def run():
        with torch.set_grad_enabled(gradient):
            out = call(query, key, value, state)
            if gradient:
                torch.autograd.grad(out, wanted, d_out)

    return run


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(torch.__version__, prepare)
