"""Inputs, options and prefixes by name, for everything that is tested over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle

from ntkprefix import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix

B, T, S, N, K, H, HV = 2, 5, 7, 4, 2, 8, 6
RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.standard_normal(shape), jnp.float32)


QUERY, KEY, VALUE = normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, HV)
SQUARE = normal(B, T, K, H), normal(B, T, K, H)
MASK = jnp.asarray(RNG.random((B, N, T, S)) < 0.6).at[..., 0].set(True)

# Options of jax.nn.dot_product_attention: (name, options). No row may be fully masked, where the two differ on purpose.
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"bias": normal(B, N, T, S)},
    "bias over heads": {"bias": normal(1, 1, T, S)},
    "mask": {"mask": MASK},
    "mask over rows": {"mask": MASK[:1, :1]},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (2, 1)},
    "symmetric window": {"local_window_size": 2},
    "causal window": {"is_causal": True, "local_window_size": (2, 0)},
    "key lengths": {"key_value_seq_lengths": jnp.array([3, 7], jnp.int32)},
    "query lengths": {"query_seq_lengths": jnp.array([5, 4], jnp.int32)},
    "all": {
        "bias": normal(B, 1, T, S),
        "mask": MASK,
        "is_causal": True,
        "scale": 0.5,
        "key_value_seq_lengths": jnp.array([6, 5], jnp.int32),
        "local_window_size": (9, 3),
    },
}


def tokens(rows=None, length=9, dtype=jnp.float32):
    lead = () if rows is None else (rows,)
    keys, values = normal(*lead, length, K, H), normal(*lead, length, K, HV)
    return TokenPrefix(keys.astype(dtype), values.astype(dtype), normal(*lead, length, K))


def clouds(components=3, rank=2):
    return MeasurePrefix(
        normal(components, K),
        normal(components, K, H),
        normal(components, K, H, rank, scale=0.3),
        normal(components, K, HV),
        normal(components, K, HV, rank),
    )


def state(heads=K):
    return FeaturePrefix(normal(heads, H, HV), jnp.abs(normal(heads, H)), log_scale=normal(heads))


def as_oracle(prefix, heads=N, kv_heads=K):
    """The same prefix as explicit float64 formulas."""
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), prefix)
    match prefix:
        case JoinedPrefix():
            return oracle.together(*(as_oracle(part, heads, kv_heads) for part in prefix.parts))
        case TokenPrefix():
            return oracle.per_kv_head(oracle.tokens(double.keys, double.values, double.log_weights), heads // kv_heads)
        case MeasurePrefix():
            covariance = np.einsum("ckhr,ckgr->ckhg", double.factor, double.factor)
            cross = np.einsum("ckvr,ckhr->ckvh", double.cross, double.factor)
            share = oracle.measure(double.log_weight, double.mean, covariance, double.value, cross)
            return oracle.per_kv_head(share, heads // kv_heads)
        case FeaturePrefix():
            share = oracle.elu_features(double.Z, double.k, double.log_scale)
            return oracle.per_kv_head(share, heads // len(double.Z))
    return None


PREFIXES = {
    "none": lambda: None,
    "tokens": tokens,
    "tokens per row": lambda: tokens(rows=B),
    "no tokens": lambda: tokens(length=0),
    "measure": clouds,
    "measure without covariance": lambda: clouds(rank=0),
    "features per kv head": state,
    "features per query head": lambda: state(heads=N),
    "joined": lambda: JoinedPrefix((tokens(rows=B), state(heads=N))),
}
