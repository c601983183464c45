"""The measurements behind the verdicts, each a function of the setting that returns JSON-ready numbers."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkprefix.parallel import tokens_over_prefix
from theory import neural_tangents_compat
from theory.bound import DEMANDED, allowed_share, bound_excess, steps_to_demand, within_bound
from theory.config import Config
from theory.data import Data, make_data
from theory.dynamics import train
from theory.infinite import predict_infinite
from theory.kernels import as_matrix, finite_ntk, infinite_ntk
from theory.model import init_stylized, stylized_model

# Length at which the kernel is computed a second time, by neural_tangents.
_AGREEMENT_M = 256
# A kernel of this many rows takes 2 GiB in float64, and minutes for its eigenvalues.
_MOST_ROWS = 16_384
# The modules whose code measurements depend on.
_MEASURING = ("bound", "data", "dynamics", "infinite", "kernels", "measure", "model", "neural_tangents_compat")


class Setting(NamedTuple):
    """Data, the infinite-prefix kernel on it, and what the guarantee says there."""

    data: Data
    H: Float[Array, "n n d d"]
    lambda_min: float
    lambda_max: float
    step_size: float

    @property
    def guaranteed_rate(self) -> float:
        """Guaranteed rate eta lambda / 2: the share of the loss that each step is guaranteed to remove."""
        return self.step_size * self.lambda_min / 2


def make_setting(config: Config) -> Setting:
    """Draw the data and find lambda and the step size.

    Raises:
        ImportError: digits are asked for and scikit-learn is not installed.
        ValueError: there are not enough digits; or H* is too large; overflows, because sigma or the inputs are too
            large; or is singular to rounding, because inputs coincide or are too many for their dimension.

    Example:
        >>> from theory import Config
        >>> from theory.measure import make_setting
        >>> 0 < make_setting(Config(quick=True)).lambda_min < 1
        True
    """
    if config.n * config.d > _MOST_ROWS:
        raise ValueError(
            f"expected at most {_MOST_ROWS} rows n d of the infinite-prefix kernel, got {config.n} x {config.d} = "
            f"{config.n * config.d}. Use fewer inputs or a smaller d."
        )
    data = make_data(
        config.n,
        config.d,
        config.n_test,
        data=config.data,
        projection=config.projection,
        targets=config.targets,
        target_scale=config.target_scale,
        seed=config.seed,
    )
    H = infinite_ntk(data.x, sigma=config.sigma)
    where = f"at n={config.n}, d={config.d}, sigma={config.sigma:g}"
    if not np.isfinite(H).all():
        raise ValueError(
            f"the infinite-prefix kernel overflows {where}: it grows as e^(sigma^2 |x|^2). Use a smaller sigma; with "
            "unit inputs anything up to 8 is finite."
        )
    eigenvalues = np.linalg.eigvalsh(np.asarray(as_matrix(H), np.float64))
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    if low < 1e-6 * high:
        raise ValueError(
            f"the infinite-prefix kernel is singular to rounding {where} (lambda_min {low:.2e}, lambda_max "
            f"{high:.2e}), so the theorem promises nothing. Use fewer inputs, a larger d or a larger sigma."
        )
    return Setting(data, H, low, high, config.step_size / high)


def measure_kernel(setting: Setting, config: Config, M: int) -> dict[str, Any]:
    """Kernel at the start against H*: relative error and lambda_min over lambda, for each seed."""
    error, ratio = [], []
    for key in _keys(config, config.kernel_seeds, M):
        W, a = _drawn(config, key, M)
        H = finite_ntk(W, a, setting.data.x)
        error.append(_relative(H, setting.H))
        ratio.append(np.linalg.eigvalsh(np.asarray(as_matrix(H), np.float64))[0] / setting.lambda_min)
    return {"error": plain(error), "eigenvalue_ratio": plain(ratio)}


def measure_agreement(setting: Setting, config: Config) -> dict[str, Any]:
    """Relative difference of `finite_ntk` from `neural_tangents.empirical_ntk_fn`, for each seed.

    Raises:
        ImportError: neural_tangents is not installed.
    """
    difference = []
    for key in _keys(config, config.seeds, _AGREEMENT_M):
        W, a = init_stylized(key, _AGREEMENT_M, config.d, config.sigma)
        reference = neural_tangents_compat.empirical_ntk_fn(partial(_model_of_x, a))(setting.data.x, None, W)
        difference.append(_relative(finite_ntk(W, a, setting.data.x), reference))
    return {"difference": plain(difference)}


def measure_infinite(setting: Setting, config: Config) -> dict[str, Any]:
    """Loss at every step and held-out predictions at the last one, for an infinite prefix; None where it diverges.

    Raises:
        ImportError: neural_tangents is not installed.
        ValueError: H* is singular in float64.
    """
    x, y, x_test = setting.data
    if config.diverges:
        # There is no curve to come close to. The verdicts that ask for one do not apply.
        return {"loss": [None] * (config.steps + 1), "rate": None, "predictions": [None] * x_test.size}
    result = predict_infinite(x, y, x_test, steps=config.steps, step_size=setting.step_size, sigma=config.sigma)
    loss = 0.5 * np.sum((np.asarray(result.train, np.float64) - np.asarray(y, np.float64)) ** 2, axis=(1, 2))
    predictions = np.asarray(result.test)[-1].ravel()
    return {"loss": plain(loss), "rate": plain(final_rate(loss)), "predictions": plain(predictions)}


def measure_training(setting: Setting, config: Config, M: int, infinite: dict[str, Any]) -> dict[str, Any]:
    """Training at one prefix length, for each seed: what verdicts 3 to 6 rest on, and curves to draw."""
    runs = [_measure_run(setting, config, M, key, infinite) for key in _keys(config, config.seeds, M)]
    return {name: [run[name] for run in runs] for name in runs[0]} | {"steps": recorded_steps(config.steps).tolist()}


def _measure_run(setting, config, M, key, infinite):
    x, _, x_test = setting.data
    W, a = _drawn(config, key, M)
    run = _train(setting, config, W, a, key, config.steps)
    loss, limit = np.asarray(run.loss, np.float64), np.asarray(infinite["loss"], np.float64)
    predictions = np.asarray(stylized_model(run.W, a, x_test)).ravel()
    return {
        "loss": plain(loss[recorded_steps(config.steps)]),
        "excess": plain(bound_excess(loss, setting.guaranteed_rate)),
        "rate": plain(final_rate(loss)),
        "curve_difference": plain(np.max(np.abs(loss - limit)) / limit[0]),
        "movement": plain(np.max(np.asarray(run.movement))),
        "drift": plain(np.linalg.norm(finite_ntk(run.W, a, x) - finite_ntk(W, a, x)) / np.linalg.norm(setting.H)),
        "prediction_error": plain(_relative(predictions, np.asarray(infinite["predictions"], np.float64))),
        "predictions": plain(predictions),
    }


def measure_requirement(config: Config) -> dict[str, Any]:
    """Smallest M of the ladder from which on the bound holds, for each seed; None where even the last fails.

    Raises:
        ImportError: as for `make_setting`.
        ValueError: as for `make_setting`.
    """
    setting = make_setting(config)
    # Long enough for the bound to demand what counts, where the limit on steps allows; rounded up to a power of two, so
    # that settings share compilations.
    horizon = steps_to_demand(DEMANDED, setting.guaranteed_rate)
    steps = min(config.scaling_max_steps, 1 << (horizon - 1).bit_length())
    smallest = np.full(config.scaling_seeds, math.nan)
    from_here_on = np.ones(config.scaling_seeds, bool)
    for M in reversed(config.scaling_lengths):
        from_here_on &= _holds(setting, config, M, steps)
        smallest[from_here_on] = M
        if not from_here_on.any():
            # Whatever shorter prefixes do, they are not the smallest from which on it holds.
            break
    demanded = allowed_share(steps, setting.guaranteed_rate)
    return {"smallest": plain(smallest), "lambda_min": setting.lambda_min, "steps": steps, "demanded": demanded}


def _holds(setting, config, M, steps):
    keys = _keys(config, config.scaling_seeds, M)
    W, a = (
        jnp.stack(parts) for parts in zip(*(init_stylized(key, M, config.d, config.sigma) for key in keys), strict=True)
    )
    run = jax.vmap(lambda W, a, key: _train(setting, config, W, a, key, steps))(W, a, jnp.stack(keys))
    return within_bound([bound_excess(loss, setting.guaranteed_rate) for loss in np.asarray(run.loss, np.float64)])


def _drawn(config: Config, key: Array, M: int) -> tuple[Array, Array]:
    """A prefix, whose tokens the devices of a mesh share out."""
    W, a = init_stylized(key, M, config.d, config.sigma)
    return tokens_over_prefix(W), tokens_over_prefix(a)


def _train(setting, config, W, a, key, steps):
    batch_size = (config.batch_size or max(1, config.n // 2)) if config.optimizer == "sgd" else None
    key = None if batch_size is None else key
    options = {"optimizer": config.optimizer, "batch_size": batch_size, "key": key}
    return train(W, a, setting.data.x, setting.data.y, steps=steps, step_size=setting.step_size, **options)


def source() -> str:
    """A digest of the code that measures: numbers of other code are not those of this one.

    Example:
        >>> from theory.measure import source
        >>> len(source())
        12
    """
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in _MEASURING)).hexdigest()[:12]


def final_rate(loss: np.ndarray) -> float:
    """Mean share of the loss removed per step, over the last quarter of training."""
    # A loss of rounding errors only says nothing about rates: stop where float32 does.
    end = int(np.argmax(~(loss > 1e-10 * loss[0]))) - 1 if not np.all(loss > 1e-10 * loss[0]) else len(loss) - 1
    start = (3 * end) // 4
    if not np.isfinite(loss).all() or end <= start:
        return math.nan
    return float(1 - (loss[end] / loss[start]) ** (1 / (end - start)))


def recorded_steps(steps: int) -> np.ndarray:
    """About a hundred steps, dense at first, that a curve is drawn through.

    Example:
        >>> from theory.measure import recorded_steps
        >>> recorded_steps(5).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    return np.unique(np.append(0, np.geomspace(1, steps, 100).round().astype(int)))


def plain(values: Any) -> Any:
    """Numbers as JSON has them: 7 significant digits, None for NaN and infinities."""
    values = np.asarray(values, np.float64)
    if values.ndim:
        return [plain(value) for value in values]
    return float(f"{values:.7g}") if np.isfinite(values) else None


def _keys(config: Config, count: int, M: int) -> list:
    base = jax.random.fold_in(jax.random.key(config.seed), M)
    return [jax.random.fold_in(base, index) for index in range(count)]


def _relative(value: Any, reference: Any) -> float:
    return float(np.linalg.norm(np.asarray(value) - np.asarray(reference)) / np.linalg.norm(np.asarray(reference)))


def _model_of_x(a, W, x):
    return stylized_model(W, a, x)
