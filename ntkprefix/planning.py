r"""What a training step costs on a mesh, before there is one: bytes, operations and exchanges of every device.

Sizes are those of the model and adapter that would be made, cut by the rules of `ntkprefix.parallel`; operations and
exchanges are those that the compiled step was seen to have (`tests/planning_on_eight_devices.py` holds the formulas
against it). A step is one of `ntkprefix.train.train` for a causal language model whose weights are frozen, whose blocks
are computed again for the gradient, and of which the answers' tokens alone meet the vocabulary.

Letters: b rows of a micro-batch on one device, T tokens of a row, A of its answer, N and K query and key-value heads on
one device, H their width, M tokens of the prefix on one device, R features, V vocabulary on one device; w bytes of a
number of the matrix products. What trains, sums and the residual stream have 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ntkprefix._extras import extra
from ntkprefix.adapters import Adapter, FeatureAdapter, TokenAdapter
from ntkprefix.kernels import best
from ntkprefix.models import TextConfig, TextModel
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.parallel import adapter_specs, path_of, weight_specs

with extra("models", "ntkprefix.planning"):
    from flax import nnx

# Times that a frozen matrix meets a token: forwards, again for the gradient, and backwards to its input.
_PASSES = 3


class Exchange(NamedTuple):
    """All-reduces of one kind, of as many bytes on every device, over all their runs in a step.

    Attributes:
        axis: of the mesh, along which devices exchange.
        what: is summed.
        arrays: how many, each an all-reduce unless the compiler joins some.
        bytes: of the arrays.
        sent: bytes that each device sends when devices form a ring, 2 (n - 1) / n times those.

    Example:
        >>> from ntkprefix.adapters import FeatureAdapter
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.planning import plan
        >>> block = BlockConfig(width=8, heads=2, mlp_width=16, causal=True)
        >>> config = TextConfig(vocabulary=10, layers=3, block=block)
        >>> sizes = {"data": 4, "tensor": 1, "prefix": 1}
        >>> (one,) = plan(config, FeatureAdapter(), sizes, batch_size=4, length=8, answer=2).exchanges
        >>> one.axis, one.what, one.sent / one.bytes  # 2 (4 - 1) / 4
        ('data', 'gradients of the adapter', 1.5)

    Source: of the ring's factor, Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms (2009), section 4.
    """

    axis: str
    what: str
    arrays: int
    bytes: int
    sent: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One device's part of a training step.

    Attributes:
        sizes: of the mesh, by the axes' names.
        micro_batches: parts that a batch is computed in.
        bytes: in memory at the same time, by what they hold.
        flops: in one step, by what they compute; a multiplication and an addition are two.
        exchanges: with other devices in one step.

    Example:
        >>> from ntkprefix.adapters import TokenAdapter
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.planning import plan
        >>> block = BlockConfig(width=8, heads=2, mlp_width=16, causal=True)
        >>> config = TextConfig(vocabulary=10, layers=3, block=block)
        >>> sizes = {"data": 2, "tensor": 1, "prefix": 4}
        >>> step = plan(config, TokenAdapter(length=16), sizes, batch_size=2, length=8, answer=2)
        >>> step.devices, step.sent("tensor"), step.sent("prefix") > step.sent("data") > 0
        (8, 0, True)
        >>> step.bytes["adapter"]  # 3 layers of 16 / 4 keys and values of 2 heads of 4 numbers of 4 bytes
        768
    """

    sizes: dict[str, int]
    micro_batches: int
    bytes: dict[str, int]
    flops: dict[str, int]
    exchanges: tuple[Exchange, ...]

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return math.prod(self.sizes.values())

    def sent(self, axis: str) -> int:
        """Bytes that a device sends along an axis in one step."""
        return sum(exchange.sent for exchange in self.exchanges if exchange.axis == axis)

    @property
    def all_reduces(self) -> int:
        """In one step, along all axes."""
        return sum(exchange.arrays for exchange in self.exchanges)


def plan(
    config: TextConfig,
    adapter: TokenAdapter | FeatureAdapter,
    sizes: Mapping[str, int],
    *,
    batch_size: int,
    length: int,
    answer: int,
    micro_rows: int = 1,
) -> Plan:
    """One device's part of a step that trains an adapter of a causal language model.

    Args:
        config: of the model; `dtype` is that of its matrix products and `param_dtype` of its weights.
        adapter: tokens or states.
        sizes: of the mesh (`ntkprefix.parallel.sizes_of`).
        batch_size: rows of a step, on all devices together.
        length: T, tokens of a row.
        answer: A, of them the answer's.
        micro_rows: b, rows that a device works on at a time.

    Returns:
        Bytes, operations and exchanges.

    Raises:
        ValueError: a batch, heads, an MLP's width, a vocabulary or tokens that devices cannot share out evenly.

    Example:
        >>> from ntkprefix.adapters import FeatureAdapter
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.planning import plan
        >>> block = BlockConfig(width=64, heads=4, mlp_width=128, causal=True)
        >>> config = TextConfig(vocabulary=100, layers=2, block=block)
        >>> sizes = {"data": 4, "tensor": 2, "prefix": 1}
        >>> step = plan(config, FeatureAdapter(), sizes, batch_size=8, length=32, answer=4)
        >>> step.micro_batches, step.devices, step.bytes["adapter"]  # half of 2 layers x 4 heads x (16 x 16 + 49), of 4
        (2, 8, 4880)
    """
    data, tensor, block = sizes["data"], sizes["tensor"], config.block
    for axis, name, count in (
        ("tensor", "kv_heads", block.kv_heads),
        ("tensor", "mlp_width", block.mlp_width),
        ("tensor", "vocabulary", config.vocabulary),
        ("prefix", "length of the prefix", getattr(adapter, "length", 0)),
    ):
        if count % sizes[axis]:
            raise ValueError(f"plan: expected the {name} to be a multiple of {axis}={sizes[axis]}, got {count}.")
    if batch_size % (data * micro_rows):
        raise ValueError(
            f"plan: expected a batch_size that is a multiple of {data} devices along data x {micro_rows} rows at a "
            f"time, got {batch_size}."
        )
    weights, trained = weights_of(config), adapter_of(config, adapter)
    cut_weights = weight_specs(weights, config, tensor)
    own = _Own(config, adapter, sizes, micro_rows, length, answer)
    cut_adapter = adapter_specs(trained, adapter, config, sizes)
    adapter_bytes = share_bytes(trained, cut_adapter, sizes)
    # The gradient of a state's value is a sum over that of Z, which is exchanged already.
    trained_sent, cut_sent = (
        {name: leaf for name, leaf in tree.items() if name != "value"} for tree in (trained, cut_adapter)
    )
    micro_batches = batch_size // (data * micro_rows)
    return Plan(
        sizes=dict(sizes),
        micro_batches=micro_batches,
        bytes={
            "weights": share_bytes(weights, cut_weights, sizes),
            "adapter": adapter_bytes,
            # Adam's two moments and the gradient; of several micro-batches, the sum and one more.
            "optimiser": (3 if micro_batches == 1 else 4) * adapter_bytes,
            "activations": own.kept_bytes() + own.block_bytes(weights, cut_weights),
        },
        flops={name: micro_batches * count for name, count in own.flops(weights, cut_weights).items()},
        exchanges=tuple(
            own.exchanges(len(jax.tree.leaves(trained_sent)), share_bytes(trained_sent, cut_sent, sizes), micro_batches)
        ),
    )


def weights_of(config: TextConfig) -> PyTree:
    """Shapes and dtypes of a model's weights, without the numbers.

    Args:
        config: of the model.

    Returns:
        A pytree of `jax.ShapeDtypeStruct`, named as the weights of the model are.

    Example:
        >>> import jax
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.planning import weights_of
        >>> block = BlockConfig(width=8, heads=2, mlp_width=16, causal=True)
        >>> weights = weights_of(TextConfig(vocabulary=10, layers=3, block=block))
        >>> weights["tokens"]["embedding"].shape, sum(leaf.size for leaf in jax.tree.leaves(weights))
        ((10, 8), 1896)
    """
    return nnx.split(nnx.eval_shape(lambda: TextModel(config, rngs=nnx.Rngs(0))))[1]


def adapter_of(config: TextConfig, adapter: Adapter) -> PyTree:
    """Shapes and dtypes of an adapter's parameters, without the numbers.

    Args:
        config: of the model.
        adapter: one that reads no more of the model than its statistics: tokens or states, not LoRA.

    Returns:
        A pytree of `jax.ShapeDtypeStruct`, as of the adapter's `init`.

    Example:
        >>> from ntkprefix.adapters import TokenAdapter
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.planning import adapter_of
        >>> block = BlockConfig(width=8, heads=2, mlp_width=16, causal=True)
        >>> config = TextConfig(vocabulary=10, layers=3, block=block)
        >>> adapter_of(config, TokenAdapter(length=16))["keys"].shape
        (3, 16, 2, 4)
    """
    block, layers = config.block, config.layers
    of_query, of_key = (layers, block.heads), (layers, block.kv_heads, block.head_width)
    shapes = {
        "log_sum_exp": of_query,
        "log_harmonic_mass": of_query,
        "centre": (*of_query, block.head_width),
        "log_centred_mass": of_query,
        "key_mean": of_key,
        "value_mean": of_key,
    }
    statistics = AttentionStatistics(**{n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()})
    return jax.eval_shape(lambda key, found: adapter.init(key, None, found), jax.random.key(0), statistics)


def share_bytes(tree: PyTree, specs: PyTree, sizes: Mapping[str, int]) -> int:
    """Bytes of one device's share of a pytree.

    Args:
        tree: of arrays, or of their shapes and dtypes.
        specs: a `PartitionSpec` for every array, whose axes of the mesh divide those that they cut.
        sizes: of the mesh, by the axes' names.

    Returns:
        A sum over all arrays; those that nothing cuts count whole.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec
        >>> from ntkprefix.planning import share_bytes
        >>> tree = {"keys": jax.ShapeDtypeStruct((64, 2, 4), jnp.float32), "rate": jnp.zeros(())}
        >>> specs = {"keys": PartitionSpec("prefix", "tensor"), "rate": PartitionSpec()}
        >>> share_bytes(tree, specs, {"data": 1, "tensor": 2, "prefix": 8})  # of keys 8 x 1 x 4 numbers
        132
    """
    shares = jax.tree.map(lambda leaf, spec: _share(leaf, spec, sizes) * leaf.dtype.itemsize, tree, specs)
    return sum(jax.tree.leaves(shares))


def _share(leaf: Any, spec: Any, sizes: Mapping[str, int]) -> int:
    return math.prod(leaf.shape) // math.prod(sizes[name] for name in spec if name is not None)


class _Own:
    """Sizes of one device's part of a micro-batch, and what follows from them; letters as above."""

    def __init__(self, config, adapter, sizes, rows, length, answer):
        block = self.block = config.block
        self.config, self.adapter, self.sizes = config, adapter, sizes
        self.b, self.T, self.A = rows, length, answer
        counts = block.heads, block.kv_heads, block.mlp_width, config.vocabulary
        self.N, self.K, self.mlp, self.V = (count // sizes["tensor"] for count in counts)
        self.H, self.w = block.head_width, jnp.dtype(block.dtype).itemsize
        self.tokens = isinstance(adapter, TokenAdapter)
        self.M = adapter.length // sizes["prefix"] if self.tokens else 0

    def kept_bytes(self) -> int:
        """Inputs of all blocks, which the gradient starts from: layers b T width 4."""
        return self.config.layers * self.b * self.T * self.block.width * 4

    def block_bytes(self, weights: PyTree, specs: PyTree) -> int:
        """What one block's gradient, or the answers' logits', holds at most.

        That is each array and its gradient at once, and the block's weights, which the loop over blocks copies. An
        estimate: the compiler lets some of them go before others come.
        """
        copied = share_bytes(weights["blocks"], specs["blocks"], self.sizes) // self.config.layers
        attention = (2 * self.N + 2 * self.K) * self.H * self.w
        mlp = (3 if self.block.gated else 2) * self.mlp * self.w
        block = self.b * self.T * 2 * (2 * self.block.width * 4 + attention + mlp)
        return max(block + copied, 2 * self.b * self.A * self.V * 4)

    def flops(self, weights: PyTree, specs: PyTree) -> dict[str, int]:
        """Of matrix products, on one micro-batch.

        A frozen matrix: 2 of each number and token, three times. Attention of T to S: 4 H S of each query and head
        forwards and again; backwards 10 by blocks, which compute logits once more, and 8 where all logits are held.
        States: 2 R (Hv + 1) forwards and again, and twice that backwards.

        Source: arXiv 2001.08361, section 2.1 (two of each weight and token); arXiv 2205.14135, algorithm 4 (the five
        products of the gradient by blocks).
        """
        layers, queries = self.config.layers, self.b * self.T * self.N
        of_blocks = sum(
            _share(leaf, spec, self.sizes)
            for (path, leaf), spec in zip(
                jax.tree_util.tree_leaves_with_path(weights), jax.tree.leaves(specs), strict=True
            )
            if path_of(path).startswith("blocks") and path_of(path).endswith("kernel")
        )
        by_blocks = best(self.T, self.T) == "blockwise"
        # By blocks, those after the query's own position are left out.
        seen = (self.T + 1) // 2 if by_blocks and self.block.causal else self.T
        if self.tokens:
            pairs = _products(best(self.b * self.T, self.M)) * self.H * self.M
        else:
            pairs = 8 * self.adapter.feature_map.size(self.H) * (self.H + 1)
        return {
            "matrices": _PASSES * 2 * of_blocks * self.b * self.T,
            "vocabulary": 2 * 2 * self.b * self.A * self.block.width * self.V,
            "attention to the input": layers * queries * _products(best(self.T, self.T)) * self.H * seen,
            "attention to the prefix": layers * queries * pairs,
        }

    def exchanges(self, adapter_arrays: int, adapter_bytes: int, micro_batches: int) -> list[Exchange]:
        """All-reduces of one step.

        Over `tensor`, of b T width numbers of each block: its two outputs forwards, the first again, and the gradient
        of the input of every matrix that is cut by its outputs: query, key, value, up and gate. Once, the embedded
        tokens, and for the answers' logits a largest, a sum, the one that is asked for, and a gradient.

        Over `prefix`, of each block: the largest scale, numerator and denominator of every query and head, forwards and
        again; gradients of the latter two, and of queries, keys and values, which all devices have.

        Over `data`: gradients of what trains, of every micro-batch; those of states over `prefix` too, whose devices
        all have them.

        Source: arXiv 1909.08053, section 3 (where matrices are cut, and what is then summed).
        """
        layers, states = self.config.layers, self.b * self.T * self.block.width
        sums = (2 + 1) + 3 + (2 if self.block.gated else 1)
        answers = self.b * self.A
        queries = self.b * self.T * self.N
        keys = self.b * self.T * self.K
        inputs = (queries + 2 * keys) * self.H * self.w
        shares = queries * (2 * (self.H + 2) + self.H + 1) * 4 * self.tokens
        per_micro_batch = [
            ("tensor", "states of blocks", layers * sums, layers * sums * states * self.w),
            ("tensor", "embedded tokens", 1, states * 4),
            ("tensor", "answers", 4, answers * (3 * 4 + self.block.width * self.w)),
            ("prefix", "shares of attention", layers * (2 * 3 + 2), layers * shares),
            ("prefix", "gradients of queries, keys and values", layers * 3, layers * inputs),
            ("prefix", "gradients of the adapter", layers * adapter_arrays, adapter_bytes * (not self.tokens)),
            ("data", "gradients of the adapter", layers * adapter_arrays, adapter_bytes),
        ]
        return [
            Exchange(axis, what, count * micro_batches, total := size * micro_batches, round(total * 2 * (n - 1) / n))
            for axis, what, count, size in per_micro_batch
            if (n := self.sizes[axis]) > 1 and size
        ]


def _products(kernel: str) -> int:
    """Operations per query, key and channel: two products forwards, again, and backwards four or five."""
    return 18 if kernel == "blockwise" else 16
