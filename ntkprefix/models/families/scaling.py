"""Which rotation a Hugging Face configuration asks for."""

from __future__ import annotations

from typing import Any

from ntkprefix.models.families.settings import Settings

_KINDS = ("default", "linear", "llama3", "yarn")


def read_scaling(settings: Settings) -> dict[str, Any]:
    """Options of `Rotary`, out of `rope_parameters`, or the older `rope_scaling` and `rope_theta`.

    Raises:
        ValueError: a kind of scaling that `Rotary` has not, or numbers missing or out of range; the message names them.

    Example:
        >>> from pathlib import Path
        >>> from ntkprefix.models.families.scaling import read_scaling
        >>> from ntkprefix.models.families.settings import Settings
        >>> read_scaling(Settings({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}, Path("c.json")))
        {'base': 500000.0, 'scaling': 'linear', 'factor': 4.0}
    """
    asked = settings.section("rope_parameters", "rope_scaling")
    kind = asked.choice("rope_type", "type", known={kind: kind for kind in _KINDS}, default="default")
    base = asked.number("rope_theta", default=settings.number("rope_theta", default=10_000.0))
    if base <= 1:
        raise ValueError(f"{settings.path}: expected rope_theta to be a number above 1, got {base}.")
    options: dict[str, Any] = {"base": base}
    if kind == "default":
        return options
    options |= {"scaling": kind, "factor": asked.number("factor")}
    if kind == "linear":
        return options
    trained = settings.number("max_position_embeddings", default=8192)
    options["original_length"] = int(asked.number("original_max_position_embeddings", default=trained))
    if kind == "llama3":
        low, high = asked.number("low_freq_factor"), asked.number("high_freq_factor")
    else:
        # What some models add to YaRN.
        asked.fixed(truncate=True, mscale=None, mscale_all_dim=None)
        low, high = asked.number("beta_slow", default=1.0), asked.number("beta_fast", default=32.0)
        if asked.content.get("attention_factor") is not None:
            options["stretch"] = asked.number("attention_factor")
    if low >= high:
        raise ValueError(
            f"{settings.path}: expected the {kind} scaling's lower bound below its upper one, got {low:g} and {high:g}."
        )
    return options | {"low": low, "high": high}
