"""PyTorch's attention, one call for every line on the standard input: the peers of `benchmarks.attention`.

It runs in an environment of its own, with PyTorch and without this package. A line is a JSON object with `case` (fused,
or formula: what NTK-Attention's paper states, with all logits in memory), `queries`, `heads`, `width` and `gradient`;
the answer is a line, once the call has ended.
"""

import functools
import json
import sys

import torch


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


def main():
    """Answer until the input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        gradient = asked["gradient"]
        (query, key, value, d_out), state = inputs(asked["queries"], asked["heads"], asked["width"], gradient)
        call = {"fused": fused, "formula": formula}[asked["case"]]
        with torch.set_grad_enabled(gradient):
            out = call(query, key, value, state)
            if gradient:
                wanted = [query, key, value] + (state if asked["case"] == "formula" else [])
                torch.autograd.grad(out, wanted, d_out)
        print("done", flush=True)


if __name__ == "__main__":
    main()
