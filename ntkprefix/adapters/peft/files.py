"""Reading and writing PEFT's two files, and the options that both kinds of adapter have in common."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save

from ntkprefix import checks
from ntkprefix.adapters.lora import LoraAdapter
from ntkprefix.adapters.peft import lora, prefix
from ntkprefix.adapters.tokens import TokenAdapter
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.safetensors_folder import read_object, read_tensors
from ntkprefix.models.text import TextModel
from ntkprefix.runs import write_bytes, write_json

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = {"LORA": lora, "PREFIX_TUNING": prefix}
# Where a file came from and what it is for.
_ORIGIN = {"peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"}
_ORIGIN |= {"inference_mode"}


def load_peft(folder: str | Path, model: TextModel) -> tuple[LoraAdapter | TokenAdapter, PyTree]:
    r"""An adapter that PEFT trained, whose states and logits on its own model are PEFT's.

    Prefix tuning in PEFT moves the input's positions back by the M prefix tokens; a prefix here leaves them alone. For
    PEFT's logits call the model with `positions=` M + t, as below; trained positions must reach that far. `generate`
    has no such argument, so what it writes after a prefix of PEFT's is not what PEFT writes.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`. Its peft_type is LORA, with one rank and
            alpha for all matrices and layers, or PREFIX_TUNING.
        model: the one that it was trained on; its sizes and the names of its architecture tell what the file holds.

    Returns:
        A `LoraAdapter` and `down` [L, in, r] and `up` [L, r, out] of every target, where matrices that PEFT keeps as
        one (GPT-2's c_attn) have equal `down`; or a `TokenAdapter` and `keys` and `values` [L, M, K, H]. Float32.

    Raises:
        FileNotFoundError: a file is not there.
        TypeError: no text model.
        ValueError: a file is damaged or of another model; an option is on that the adapters here do not have (DoRA,
            biases, ranks by pattern, chosen layers, further trained modules, starts that change the model's own
            weights and any option that is unknown). The message names the file and the option or tensor.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import TokenAdapter
        >>> from ntkprefix.adapters.peft import load_peft, save_peft
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> params = {"keys": jnp.ones((2, 7, 3, 4)), "values": jnp.ones((2, 7, 3, 4))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_peft(folder, TokenAdapter(length=7), params, model)
        ...     adapter, params = load_peft(folder, model)
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> positions = adapter.length + jnp.arange(tokens.shape[1])[None]
        >>> model(tokens, adapter=adapter.adapt(params), positions=positions).shape
        (1, 5, 12)

    Source: the file format of PEFT 0.21.
    """
    _is_text_model("load_peft", model)
    folder = Path(folder)
    config, weights = folder / _CONFIG, folder / _WEIGHTS
    for file in (config, weights):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: expected an adapter's file, found nothing. Pickled adapters (.bin) are not read: save the "
                "adapter again with safetensors."
            )
    settings = Settings(read_object(config), config)
    kind = settings.choice("peft_type", known=_KINDS)
    _no_other_options(settings, _ORIGIN | kind.OPTIONS)
    tensors = read_tensors(weights)
    _check_numbers(tensors, weights)
    return kind.read(settings, model, tensors, weights)


def save_peft(
    folder: str | Path,
    adapter: LoraAdapter | TokenAdapter,
    params: PyTree,
    model: TextModel,
    *,
    base_model: str | None = None,
    model_type: str | None = None,
) -> Path:
    r"""Write an adapter so that PEFT loads it.

    Where PEFT keeps several matrices as one, their updates go into one: with one `down` if they share it, else side by
    side with a rank and alpha as many times as large, x [A_q A_v] [[B_q, 0], [0, B_v]]; that rank is then every
    matrix's, filled up with zeros. For positions behind a prefix see `load_peft`.

    Args:
        folder: made if it is not there; its `adapter_config.json` and `adapter_model.safetensors` are replaced.
        adapter: `LoraAdapter` or `TokenAdapter`.
        params: its parameters.
        model: the one that it was trained on.
        base_model: name or path of the model for PEFT's `base_model_name_or_path`.
        model_type: as in the model's `config.json`; needed only where two architectures name equal models differently
            (glm and chatglm).

    Returns:
        The folder.

    Raises:
        OSError: it cannot be written.
        TypeError: another adapter, no text model.
        ValueError: parameters of another adapter or model, not finite or not floating-point; a model of no known
            architecture, a target that it does not have, or more than one `model_type` that fits.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import LoraAdapter
        >>> from ntkprefix.adapters.peft import load_peft, save_peft
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> adapter = LoraAdapter(rank=3, targets=("down",))
        >>> params = {"down": {"down": jnp.ones((2, 24, 3)), "up": jnp.ones((2, 3, 12))}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_peft(save_peft(folder, adapter, params, model), model)[0]
        LoraAdapter(rank=3, alpha=16.0, targets=('down',))

    Source: the file format of PEFT 0.21.
    """
    _is_text_model("save_peft", model)
    if not isinstance(adapter, (LoraAdapter, TokenAdapter)):
        raise TypeError(f"save_peft: expected a LoraAdapter or TokenAdapter, got {type(adapter).__name__}.")
    arrays = _flat(params)
    if isinstance(adapter, LoraAdapter):
        config, tensors = lora.written(adapter, arrays, model, model_type)
    else:
        config, tensors = prefix.written(adapter, arrays, model)
    common = {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        # As an encoder has no head here, PEFT puts the adapter on transformers' AutoModel.
        "task_type": "FEATURE_EXTRACTION" if model.config.head == "none" else "CAUSAL_LM",
    }
    whole = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    folder = Path(folder)
    # The numbers first: a configuration without them would look like a whole adapter.
    write_bytes(folder / _WEIGHTS, save(whole, metadata={"format": "pt"}))
    write_json(folder / _CONFIG, {**common, **config})
    return folder


def _is_text_model(function: str, model: Any) -> None:
    if not isinstance(model, TextModel):
        raise TypeError(f"{function}: expected a TextModel, got {type(model).__name__}.")


def _no_other_options(settings: Settings, known: set[str]) -> None:
    """Any option may change what an adapter computes, those of later releases too, unless it is off."""
    for name, value in settings.content.items():
        if value and name not in known:
            raise ValueError(
                f"{settings.path}: expected {name} to be off, got {reprlib.repr(value)}: it is not supported."
            )


def _check_numbers(tensors: dict[str, np.ndarray], file: Path) -> None:
    for name, tensor in tensors.items():
        try:
            checks.finite_array(name, tensor)
        except ValueError as error:
            raise ValueError(f"{file}: {error}.") from error


def _flat(params: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
