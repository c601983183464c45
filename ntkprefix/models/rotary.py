"""Rotary position embeddings: which angle each pair of channels turns by at each position, and the turning."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
    """Cosines and sines of the angles that every pair of channels turns by at every position.

    Attributes:
        cos: times the rotation's stretch, float32, [B, T, pairs].
        sin: as cos.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models import Rotary
        >>> cos, sin = Rotary(width=4).at(jnp.array([[0, 1, 2]]))
        >>> cos.shape
        (1, 3, 2)
        >>> cos[0, 0].tolist(), sin[0, 0].tolist()  # position 0 does not turn
        ([1.0, 1.0], [0.0, 0.0])
    """

    cos: Float[Array, "B T pairs"]
    sin: Float[Array, "B T pairs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    r"""Rotation of queries and keys by their position.

    Pair j of a head's first `width` channels turns by position * f_j. Without scaling f_j = base^{-2j/width}; the
    scalings for longer contexts change the slow frequencies.

    Attributes:
        width: how many of a head's channels turn, even; the others keep still.
        base: of the frequencies.
        interleaved: pairs are channels (2j, 2j + 1), as in GLM, in place of (j, j + width/2).
        scaling: `linear` divides all frequencies by `factor`; `llama3` only those of wavelengths above
            `original_length / low`, blending up to `original_length / high`; `yarn` those that turn fewer than `low`
            times in `original_length`, blending up to `high` times, and stretches the logits by
            (1 + log(factor)/10)^2.
        factor: of the scaling.
        low: see `scaling`.
        high: see `scaling`.
        original_length: of the context that the model was trained with.
        stretch: factor on cosines and sines; None for the scaling's own.

    Raises:
        ValueError: an odd width, or numbers that give no finite angles.

    Source: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071); Llama 3.1 for its own.
    """

    width: int
    base: float = 10_000.0
    interleaved: bool = False
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192
    stretch: float | None = None

    def __post_init__(self):
        if self.width % 2 or self.width < 2:
            raise ValueError(f"Rotary: expected an even width of at least 2, got {self.width}.")
        if not self._turns():
            raise ValueError(
                f"Rotary: expected a base, a factor and limits that give finite angles, got base {self.base}, factor "
                f"{self.factor}, low {self.low} and high {self.high}."
            )

    def _turns(self) -> bool:
        """Whether all frequencies are numbers of float32."""
        try:
            with np.errstate(all="ignore"):
                frequencies = self.frequencies().astype(np.float32)
        except (ArithmeticError, ValueError):  # of `math`: logarithms of yarn's
            return False
        return bool((np.isfinite(frequencies) & (frequencies >= 0)).all())

    def frequencies(self) -> Float[np.ndarray, " pairs"]:
        """Angle per position of every pair, in radians, float64.

        Example:
            >>> from ntkprefix.models.rotary import Rotary
            >>> Rotary(width=4, base=100.0).frequencies().tolist()
            [1.0, 0.1]
        """
        plain = self.base ** -(np.arange(0, self.width, 2) / self.width)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            # How many times a pair turns in the original context decides how much it is slowed.
            turns = self.original_length * plain / (2 * math.pi)
            keep = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            return plain * (keep + (1 - keep) / self.factor)
        if self.scaling == "yarn":
            first, last = self._yarn_range()
            slowed = np.clip((np.arange(self.width // 2) - first) / max(last - first, 1e-3), 0, 1)
            return plain * (1 - slowed + slowed / self.factor)
        return plain

    def at(self, positions: Int[Array, "B T"]) -> Rotation:
        """The rotation of tokens at these positions.

        Args:
            positions: from 0, [B, T].

        Returns:
            Cosines and sines, [B, T, width / 2].
        """
        # float32 holds positions up to 2^24 exactly, and their angles to 1e-7 of their size.
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(self.frequencies(), jnp.float32)[None, None]
        stretch = self.stretch
        if stretch is None:
            stretch = 0.1 * math.log(self.factor) + 1 if self.scaling == "yarn" and self.factor > 1 else 1.0
        return Rotation(jnp.cos(angles) * stretch, jnp.sin(angles) * stretch)

    def further(self, by: int) -> Rotation:
        """What turns keys that have been turned to their positions to those that are `by` further on, [1, 1, pairs].

        Angles add, and the stretch is in the keys already.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> from ntkprefix.models.rotary import Rotary, rotate
            >>> rotary, keys = Rotary(width=8), jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
            >>> at_7 = rotate(keys, rotary.at(jnp.full((1, 3), 7)))
            >>> at_10 = rotate(keys, rotary.at(jnp.full((1, 3), 10)))
            >>> bool(jnp.allclose(rotate(at_7, rotary.further(3)), at_10, atol=1e-5))
            True
        """
        # The frequencies as `at` rounds them: the difference is multiplied by all of `by`.
        angles = self.frequencies().astype(np.float32).astype(np.float64) * by
        return Rotation(*(jnp.asarray(turn, jnp.float32)[None, None] for turn in (np.cos(angles), np.sin(angles))))

    def _yarn_range(self) -> tuple[float, float]:
        """Between which pairs the blend runs: those that turn `high` and `low` times in the original context."""

        def pair(turns: float) -> float:
            return self.width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.base))

        return max(math.floor(pair(self.high)), 0), min(math.ceil(pair(self.low)), self.width - 1)


def rotate(x: Float[Array, "B T N H"], rotation: Rotation, *, interleaved: bool = False) -> Float[Array, "B T N H"]:
    """Turn the first channels of every head.

    Args:
        x: queries or keys, [B, T, N, H].
        rotation: of their positions.
        interleaved: see `Rotary`.

    Returns:
        Of the shape and dtype of x; computed in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models.rotary import Rotary, rotate
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> turned = rotate(x, Rotary(width=4).at(jnp.arange(3)[None]))
        >>> bool((turned[:, 0] == x[:, 0]).all())  # position 0 does not turn
        True
    """
    cos, sin = (part[:, :, None] for part in rotation)
    width = 2 * cos.shape[-1]
    turning, still = x[..., :width].astype(jnp.float32), x[..., width:]
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., : width // 2], turning[..., width // 2 :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    together = jnp.stack(turned, -1).reshape(turning.shape) if interleaved else jnp.concatenate(turned, -1)
    return jnp.concatenate([together.astype(x.dtype), still], axis=-1)
