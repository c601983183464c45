r"""Attention with NTK-Attention's state in one kernel for NVIDIA's Hopper GPUs, written in Pallas.

Two warpgroups attend, each for 64 queries, while a third fetches keys and values (the division of labour of arXiv
2407.08608); the two take turns, so that one's matrix products run under the other's exponentials. A state's share is
one more product, phi(q) [64, R] Z [R, Hv], of queries that are there anyway, while the first keys are under way: the
sums over keys begin with it instead of zero. Query and output cross the memory once.

Exponentials are powers of two here: logits come times log2(e).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from ntkprefix._dtypes import accumulator
from ntkprefix.feature_maps import Elu
from ntkprefix.prefixes.features import FeaturePrefix

_LOG2E = math.log2(math.e)
# Warpgroups that compute; the queries of each are one tile of the matrix unit's instruction.
_WORKERS, _ROWS = 2, 64


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the work is cut.

    Attributes:
        columns: keys in a block, a multiple of the 128 queries that two warpgroups have.
        stages: blocks of keys and values under way.
    """

    columns: int = 128
    stages: int = 2

    @classmethod
    def of(cls, width: int, size: int) -> Tiles:
        """For a head's width and so many keys: the fastest of a few that were tried by hand on an H200."""
        return cls(columns=256 if width == 64 and size >= 2048 and size % 256 == 0 else 128)


def unsupported(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    prefix: Any,
    options: dict[str, Any],
) -> str | None:
    """What of a call this kernel has no code for, in words; None where it has all."""
    width, queries = query.shape[-1], _WORKERS * _ROWS
    tiles = Tiles.of(width, key.shape[1])
    if query.dtype not in (jnp.bfloat16, jnp.float16) or not query.dtype == key.dtype == value.dtype:
        return f"query, key and value of {query.dtype}, {key.dtype} and {value.dtype} (bfloat16 or float16 alone)"
    if width not in (64, 128) or value.shape[-1] != width:
        return f"heads of width {width} with values of {value.shape[-1]} (64 or 128, both alike)"
    if query.shape[1] % queries or key.shape[1] % tiles.columns or not query.shape[1] or not key.shape[1]:
        return f"{query.shape[1]} queries and {key.shape[1]} keys (multiples of {queries} and {tiles.columns})"
    if options["is_causal"] and query.shape[1] != key.shape[1]:
        return f"causality with {query.shape[1]} queries and {key.shape[1]} keys (as many of both)"
    if given := sorted(name for name, option in options.items() if name != "is_causal" and option is not None):
        return ", ".join(given)
    if prefix is None:
        return None
    if type(prefix) is not FeaturePrefix or not isinstance(prefix.feature_map, Elu):
        return "a prefix other than a state of elu features"
    return "a state for each row" if prefix.Z.ndim == 4 else None


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    prefix: FeaturePrefix | None,
    *,
    scale: float,
    is_causal: bool,
    tiles: Tiles | None = None,
    interpret: Any = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"], Float[Array, "B T N"]]:
    """Output, and sign and natural logarithm of its denominator, of what `unsupported` has no complaint about.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, H].
        prefix: None, or a state of elu features.
        scale: beta.
        is_causal: as in `ntkprefix.attention`.
        tiles: how the work is cut; None for the best known.
        interpret: parameters with which Pallas plays the kernel on a CPU; None on a GPU.
    """
    batch, length, heads, width = query.shape
    tiles = tiles or Tiles.of(width, key.shape[1])
    sizes = _Sizes(
        length,
        key.shape[1],
        width,
        group=heads // key.shape[2],
        state_group=0 if prefix is None else heads // prefix.Z.shape[-3],
        causal=is_causal,
        tiles=tiles,
        scale=float(scale),
        ops=_Ops(interpret is not None),
    )
    rows = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    outputs = [jax.ShapeDtypeStruct(query.shape, query.dtype), rows, rows]
    given = () if prefix is None else _of_state(prefix, float(scale), query.dtype)
    played = {} if interpret is None else {"interpret": interpret}
    out, sign, log_mass = plgpu.kernel(
        partial(_kernel, sizes),
        **{_OUTPUTS: outputs},
        grid=(heads, length // (_WORKERS * _ROWS), batch),
        grid_names=("head", "tile", "row"),
        num_threads=_WORKERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **played,
    )(query, key, value, *given)
    return out, jnp.swapaxes(sign, 1, 2), jnp.swapaxes(log_mass, 1, 2)


def _of_state(prefix: FeaturePrefix, scale: float, dtype: Any) -> tuple[Array, Array]:
    """Z, [A, R, Hv], and for each feature k, log2(e) sqrt(beta) c and log2(e) s, [A, 3, R]."""
    wide = accumulator(prefix.Z.dtype)
    k = prefix.k.astype(wide)
    centre = jnp.zeros_like(k) if prefix.centre is None else prefix.centre.astype(wide)
    log_scale = jnp.zeros(k.shape[:1], wide) if prefix.log_scale is None else prefix.log_scale.astype(wide)
    shift = jnp.broadcast_to(log_scale[:, None], k.shape)
    rows = jnp.stack([k, centre * (_LOG2E * math.sqrt(scale)), shift * _LOG2E], axis=1)
    return prefix.Z.astype(dtype), rows.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    length: int
    size: int
    width: int
    group: int
    state_group: int  # 0 without a state
    causal: bool
    tiles: Tiles
    scale: float
    ops: _Ops


class _Place(NamedTuple):
    """Where a warpgroup works."""

    head: Any
    row: Any
    warpgroup: Any
    first_row: Any  # of the tile's queries
    whole: Any  # blocks of keys of which nothing is hidden
    blocks: Any  # of which something is seen

    @classmethod
    def of(cls, sizes):
        head, row, warpgroup = (jax.lax.axis_index(name) for name in ("head", "row", "warpgroup"))
        # The last tiles have the most keys to see where causality holds: they start first.
        tile = sizes.length // (_WORKERS * _ROWS) - 1 - jax.lax.axis_index("tile")
        first_row = tile * (_WORKERS * _ROWS)
        blocks = jnp.int32(sizes.size // sizes.tiles.columns)
        whole = blocks
        if sizes.causal:
            whole = jax.lax.div(first_row, jnp.int32(sizes.tiles.columns))
            blocks = whole + 1
        return cls(head, row, warpgroup, first_row, whole, blocks)


class _Shared(NamedTuple):
    """Memory and barriers that the warpgroups share."""

    q: Any
    k: Any
    v: Any
    rows: Any
    z: Any
    z_rows: Any
    q_here: Any
    k_here: Any
    v_here: Any
    z_here: Any
    k_free: Any
    v_free: Any
    turn: Any

    @classmethod
    def types(cls, sizes, dtype):
        """What is asked for."""
        width, tiles, barrier = sizes.width, sizes.tiles, plgpu.Barrier

        def of_matrix(*shape):
            # Rows of 64 numbers, 128 bytes, exchanged so that a column of a tile lies in all banks.
            return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))

        return cls(
            q=of_matrix(_WORKERS, _ROWS, width),
            k=of_matrix(tiles.stages, tiles.columns, width),
            v=of_matrix(tiles.stages, tiles.columns, width),
            rows=plgpu.SMEM((2, _WORKERS, _ROWS), jnp.float32),
            z=of_matrix(width, width) if sizes.state_group else None,
            z_rows=plgpu.SMEM((3, width), jnp.float32) if sizes.state_group else None,
            q_here=barrier(num_barriers=_WORKERS),
            k_here=barrier(num_barriers=tiles.stages),
            v_here=barrier(num_barriers=tiles.stages),
            z_here=barrier(num_arrivals=2) if sizes.state_group else None,
            k_free=barrier(num_arrivals=_WORKERS, num_barriers=tiles.stages),
            v_free=barrier(num_arrivals=_WORKERS, num_barriers=tiles.stages),
            turn=barrier(num_arrivals=_WORKERS),
        )


def _kernel(sizes, *refs):
    query_ref, *others = refs[:-3]
    outputs = refs[-3:]
    place = _Place.of(sizes)

    def body(*memory):
        shared = _Shared(*memory)
        pl.when(place.warpgroup < _WORKERS)(lambda: _attend(sizes, place, shared, query_ref, *outputs))
        pl.when(place.warpgroup == _WORKERS)(lambda: _fetch(sizes, place, shared, *others))

    pl.run_scoped(body, *_Shared.types(sizes, query_ref.dtype), collective_axes="warpgroup")


def _attend(sizes, place, shared, query_ref, out_ref, sign_ref, log_mass_ref):
    """A warpgroup's queries over all keys."""
    plgpu.set_max_registers(232, action="increase")
    ops, row, head, warpgroup = sizes.ops, place.row, place.head, place.warpgroup
    own, top = shared.q.at[warpgroup], place.first_row + warpgroup * _ROWS
    plgpu.copy_gmem_to_smem(query_ref.at[row, pl.ds(top, _ROWS), head], own, shared.q_here.at[warpgroup])
    plgpu.barrier_wait(shared.q_here.at[warpgroup])
    carry = ops.zeros((_ROWS, sizes.width)), ops.per_row(0.0), ops.per_row(-jnp.inf)
    if sizes.state_group:
        plgpu.barrier_wait(shared.z_here)
        carry = _of_queries(ops, sizes.scale, own, shared.z, shared.z_rows)
    step = partial(_step, sizes, shared, own, top)
    # The second warpgroup lets the first begin, and the first lets the second end.
    pl.when(warpgroup == 1)(partial(_take_turns, shared.turn))
    carry = jax.lax.fori_loop(0, place.whole, partial(step, False), carry)
    if sizes.causal:
        carry = step(True, place.whole, carry)
    num, den, largest = carry
    pl.when(warpgroup == 0)(partial(_take_turns, shared.turn))
    nothing = den == 0
    num = num * ops.rows(1 / jnp.where(nothing, 1.0, den), num.shape)
    own[...] = jnp.where(ops.rows(nothing.astype(jnp.float32), num.shape) > 0, 0.0, num).astype(out_ref.dtype)
    signs, masses = shared.rows.at[0, warpgroup], shared.rows.at[1, warpgroup]
    signs[...] = jnp.where(den < 0, -1.0, jnp.where(nothing, 0.0, 1.0))
    log_mass = largest / _LOG2E + jnp.log(jnp.where(nothing, 1.0, jnp.abs(den)))
    masses[...] = jnp.where(nothing, -jnp.inf, log_mass)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(own, out_ref.at[row, pl.ds(top, _ROWS), head])
    plgpu.copy_smem_to_gmem(signs, sign_ref.at[row, head, pl.ds(top, _ROWS)])
    plgpu.copy_smem_to_gmem(masses, log_mass_ref.at[row, head, pl.ds(top, _ROWS)])
    plgpu.wait_smem_to_gmem(0)


def _step(sizes, shared, own, top, masked, index, carry):
    """One block of keys."""
    ops, tiles, to_bits = sizes.ops, sizes.tiles, sizes.scale * _LOG2E
    num, den, largest = carry
    slot = jax.lax.rem(index, jnp.int32(tiles.stages))
    plgpu.barrier_wait(shared.k_here.at[slot])
    logits = ops.products(own, shared.k.at[slot], partial(_take_turns, shared.turn))
    plgpu.barrier_arrive(shared.k_free.at[slot])
    if masked:
        rows = ops.iota((_ROWS, tiles.columns), 0) + top
        columns = ops.iota((_ROWS, tiles.columns), 1) + index * tiles.columns
        logits = jnp.where(rows >= columns, logits, -jnp.inf)
    larger = jnp.maximum(largest, jnp.max(logits, axis=1) * to_bits)
    kept = jnp.exp2(largest - larger)
    # One instruction before the exponential's, where scaling first would take two.
    weights = jnp.exp2(logits * to_bits - ops.rows(larger, logits.shape))
    num, den = num * ops.rows(kept, num.shape), den * kept + jnp.sum(weights, axis=1)
    small = weights.astype(shared.v.dtype)
    num, den, larger, small = jax.lax.optimization_barrier((num, den, larger, small))
    plgpu.barrier_arrive(shared.turn)
    plgpu.barrier_wait(shared.v_here.at[slot])
    plgpu.barrier_wait(shared.turn)
    num = ops.add_product(num, small, shared.v.at[slot])
    plgpu.barrier_arrive(shared.v_free.at[slot])
    return num, den, larger


def _take_turns(turn):
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)


def _fetch(sizes, place, shared, key_ref, value_ref, z_ref=None, of_rows_ref=None):
    """The third warpgroup's work: what the others read, as soon as there is room for it."""
    plgpu.set_max_registers(40, action="decrease")
    tiles, blocks = sizes.tiles, place.blocks
    kv_head = jax.lax.div(place.head, jnp.int32(sizes.group))

    def fetch(ref, smem, here, index, slot):
        block = place.row, pl.ds(index * tiles.columns, tiles.columns), kv_head
        plgpu.copy_gmem_to_smem(ref.at[block], smem.at[slot], here.at[slot])

    fetch_keys = partial(fetch, key_ref, shared.k, shared.k_here)
    fetch_values = partial(fetch, value_ref, shared.v, shared.v_here)

    if sizes.state_group:
        state = jax.lax.div(place.head, jnp.int32(sizes.state_group))
        plgpu.copy_gmem_to_smem(z_ref.at[state], shared.z, shared.z_here)
        plgpu.copy_gmem_to_smem(of_rows_ref.at[state], shared.z_rows, shared.z_here)

    def of_stages(do):
        for stage in range(tiles.stages):
            pl.when(stage < blocks)(partial(do, jnp.int32(stage)))

    def first(stage):
        fetch_keys(stage, stage)
        fetch_values(stage, stage)

    def last(stage):
        plgpu.barrier_wait(shared.k_free.at[stage])
        plgpu.barrier_wait(shared.v_free.at[stage])

    of_stages(first)

    @pl.loop(0, jnp.maximum(blocks - tiles.stages, 0))
    def _(index):
        slot = jax.lax.rem(index, jnp.int32(tiles.stages))
        plgpu.barrier_wait(shared.k_free.at[slot])
        fetch_keys(index + tiles.stages, slot)
        plgpu.barrier_wait(shared.v_free.at[slot])
        fetch_values(index + tiles.stages, slot)

    of_stages(last)


def _of_queries(ops, scale, q_smem, z_smem, z_rows):
    """What a state has for each query: sums over 2^{their scale}, with which the sums over keys begin.

    The scale is that of the denominator, and -inf where the state holds nothing, so that it sets none.
    """
    q = ops.matrix(q_smem).astype(jnp.float32) * math.sqrt(scale)
    phi = jnp.where(q > 0, q + 1, jnp.exp2(jnp.minimum(q, 0) * _LOG2E))
    k, centre = (ops.columns(ops.per_column(z_rows, index), q.shape) for index in (0, 1))
    den = jnp.sum(phi * k, axis=1)
    shift = jnp.sum(q * centre, axis=1) + z_rows[2, 0]
    num = ops.add_product(ops.zeros(q.shape), phi.astype(z_smem.dtype), z_smem)
    size, none = jnp.abs(den), den == 0
    size = jnp.where(none, 1.0, size)
    nothing = none & (jnp.max(jnp.abs(num), axis=1) == 0)
    num = num * ops.rows(1 / size, num.shape)
    return num, den / size, jnp.where(nothing, -jnp.inf, shift + jnp.log2(size))


@dataclasses.dataclass(frozen=True)
class _Ops:
    """What is said otherwise to the hardware and to Pallas's interpreter, which knows no layouts of registers."""

    interpret: bool

    def _laid(self, array, layout):
        return array if self.interpret else plgpu.layout_cast(array, layout)

    def zeros(self, shape):
        return self._laid(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)

    def per_row(self, number):
        return self._laid(jnp.full((_ROWS,), number, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    def iota(self, shape, axis):
        if self.interpret:
            return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def rows(self, array, shape):
        return jax.lax.broadcast_in_dim(array, shape, [0])

    def columns(self, array, shape):
        return jax.lax.broadcast_in_dim(array, shape, [1])

    def matrix(self, ref):
        return ref[...] if self.interpret else _load(ref, layout=plgpu.Layout.WGMMA)

    def per_column(self, ref, index):
        return ref[index] if self.interpret else _load(ref.at[index], layout=plgpu.Layout.WGMMA.reduce(0))

    def products(self, one_ref, other_ref, meanwhile):
        """`one @ other^T`; `meanwhile` runs when the product is under way."""
        if self.interpret:
            meanwhile()
            return jnp.dot(one_ref[...], other_ref[...].T, preferred_element_type=jnp.float32)

        def into(sums):
            plgpu.wgmma(sums, one_ref, other_ref.transpose((1, 0)))
            meanwhile()
            return sums[...]

        return pl.run_scoped(into, plgpu.ACC((one_ref.shape[0], other_ref.shape[0]), jnp.float32))

    def add_product(self, total, one, other_ref):
        """`total + one @ other`, with `one` in registers."""
        if self.interpret:
            return total + jnp.dot(one, other_ref[...], preferred_element_type=jnp.float32)
        return pl.run_state(lambda sums: plgpu.wgmma(sums, one, other_ref))(plgpu.ACC.init(total))


# JAX renamed an argument in 0.10.2, and `load` lost one by and by.
_OUTPUTS = "out_type" if "out_type" in inspect.signature(plgpu.kernel).parameters else "out_shape"
_idx = inspect.signature(plgpu.load).parameters.get("idx")
_load = partial(plgpu.load, idx=()) if _idx and _idx.default is inspect.Parameter.empty else plgpu.load
