"""Where a model's files lie: in a package, on this disk, or on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntkprefix.models.packages import WEIGHTS, packaged
from ntkprefix.models.safetensors_folder import missing_files

# Of a model's folder alone: subfolders hold other formats of the same weights. Pickles (.bin, .pt) are never fetched.
_TEXTS = ["*.json", "vocab.txt", "merges.txt"]
_WEIGHTS = ["model.safetensors", "model-*.safetensors"]
_SUBFOLDERS = ["*/*"]
_TOKENISERS = ("tokenizer.json", "vocab.txt")

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_FILES = (".bin", ".gguf", ".json", ".onnx", ".pt", ".pth", ".safetensors", ".txt")


def locate_model(place: str | Path, *, revision: str | None = None) -> Path:
    """The file or folder of a model.

    Args:
        place: a path, a name of packaged weights, or the name `owner/name` of a model on the Hugging Face hub. Only
            the last is looked up on the network, and only if the hub's local cache does not have it whole: what is
            there is used as it is, even when the hub has something newer.
        revision: of the hub's repository: a branch, a tag or a commit; its main branch if None.

    Returns:
        Its path. Of a hub's model it is a folder with `config.json`, weights and the tokeniser's files.

    Raises:
        FileNotFoundError: nothing is there; the hub cannot be reached; or its repository has no safetensors.
        ImportError: a hub's name is given, and the package huggingface_hub is not installed.
        ValueError: a revision of what does not come from the hub.

    Example:
        >>> from ntkprefix.models.hub import locate_model
        >>> locate_model("HuggingFaceTB/SmolLM2-135M").name  # doctest: +SKIP
        '93efa2f097d58c2a74874c7e644dbc9b0cee75a2'

    Source: the hub and its cache as of the package huggingface_hub.
    """
    return _locate(place, revision, ("config.json",), _TEXTS + _WEIGHTS, missing_files)


def locate_texts(place: str | Path, wanted: tuple[str, ...] = _TOKENISERS, *, revision: str | None = None) -> Path:
    """The file or folder of a tokeniser, or of other texts beside a model, without its weights.

    Args:
        place: see `locate_model`.
        wanted: names of files, one of which a hub's model must have.
        revision: see `locate_model`.

    Returns:
        Its path; of a hub's model a folder.

    Raises:
        FileNotFoundError: nothing is there, the hub cannot be reached, or its repository has none of the files.
        ImportError: a hub's name is given, and the package huggingface_hub is not installed.
        ValueError: a revision of what does not come from the hub.
    """

    def missing(folder: Path) -> list[str]:
        return [] if any((folder / name).is_file() for name in wanted) else [" or ".join(wanted)]

    return _locate(place, revision, wanted, _TEXTS, missing)


def _locate(
    place: str | Path,
    revision: str | None,
    known_by: tuple[str, ...],
    patterns: list[str],
    missing: Callable[[Path], list[str]],
) -> Path:
    found = packaged(str(place)) or Path(place)
    there = found.exists() and place != ""  # which as a path is the folder that Python runs in
    named = isinstance(place, str) and not there and _NAME.fullmatch(place) and not place.endswith(_FILES)
    if named:
        return _from_hub(str(place), revision, known_by, patterns, missing)
    if revision is not None:
        raise ValueError(f"{place}: expected no revision of what does not come from the hub, got {revision!r}.")
    if not there:
        raise FileNotFoundError(
            f"{place}: expected a file or folder, or the name of packaged weights ({', '.join(WEIGHTS)}), found "
            "nothing. A model of the Hugging Face hub is called owner/name."
        )
    return found


def _from_hub(
    name: str,
    revision: str | None,
    known_by: tuple[str, ...],
    patterns: list[str],
    missing: Callable[[Path], list[str]],
) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{name}: no such file or folder; fetching models of the hub needs a package: pip install huggingface_hub"
        ) from error
    cached = [_ask(name, revision, huggingface_hub.try_to_load_from_cache, filename=file) for file in known_by]
    for file in cached:
        if isinstance(file, str) and not missing(Path(file).parent):
            return Path(file).parent
    options = {"allow_patterns": patterns, "ignore_patterns": _SUBFOLDERS, "library_name": "ntkprefix"}
    folder = Path(_ask(name, revision, huggingface_hub.snapshot_download, **options))
    absent = missing(folder)
    if absent:
        raise FileNotFoundError(
            f"{name}: expected {', '.join(absent)} in this repository of the hub, found none. Give a repository or a "
            "revision that has it. Pickled checkpoints (.bin, .pt) are not read: save such a model again with "
            "safetensors, and give its folder."
        )
    return folder


def _ask(name: str, revision: str | None, call: Callable[..., Any], **options: Any) -> Any:
    try:
        return call(name, revision=revision, **options)
    except Exception as error:  # it passes on what its HTTP client raises, another one in each of its major versions
        raise FileNotFoundError(_why(name, revision, error)) from error


def _why(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    start = f"{name}: there is no such file or folder here, and as a model of the Hugging Face hub "
    if isinstance(error, errors.GatedRepoError):
        return start + "it asks for consent first. Accept its conditions on its page, and log in: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return start + "it does not exist, or is private. Check the spelling; for a private one log in: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return start + f"it has no revision {revision!r}. Give a branch, a tag or a whole commit."
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return start + (
        f"it is not whole in the local cache and could not be fetched ({reason}). Check the spelling of the path; or "
        "unset HF_HUB_OFFLINE, connect and try again; or copy the model's folder here and give its path."
    )
