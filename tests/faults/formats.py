"""Every kind of file that the library reads: a whole one, and what reads it."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from images.image_sets import classes, npz
from models.dinov2_folders import tiny_golden, weights_of, write_folder, write_shards
from models.tiny_gguf import write_gguf
from models.tiny_text import write_folder as write_text
from onnx import TensorProto, helper, numpy_helper
from places import GOLDEN
from prompts.test_prompt_files import PREFIXES
from report.pages import train_run
from test_peft import CONFIG, WEIGHTS, write_theirs
from texts.words import word_tokenizer

from experiments import RESULTS
from ntkprefix.adapters import LoraAdapter, Stack, TokenAdapter, load_adapter, save_adapter
from ntkprefix.adapters.peft import load_peft
from ntkprefix.commands.plan import model_of
from ntkprefix.given_options import checked_options
from ntkprefix.images import load_images
from ntkprefix.models import load_dinov2, load_preprocess, load_text_model
from ntkprefix.models.onnx_weights import read_onnx
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.parts import Parts
from ntkprefix.prompts import load_prompt, save_prompt
from ntkprefix.records import read_all, sections
from ntkprefix.run_folder import same_run
from ntkprefix.texts import load_texts
from ntkprefix.train import Checkpoints, TrainConfig, train
from theory.config import Config
from theory.pieces import Pieces

FORMATS = {}


def kind(*names):
    """Registers what fills a folder and gives what reads it; each name is that of a file in it, or a pattern."""

    def register(make):
        for name in names:
            FORMATS[f"{make.__name__}: {name}"] = (make, name)
        return make

    return register


@kind("config.json", "model.safetensors")
def vision(folder):
    write_folder(folder, weights_of(tiny_golden()))
    return lambda: load_dinov2(folder)


@kind("model.safetensors.index.json", "model-0.safetensors")
def shards(folder):
    write_shards(folder, weights_of(tiny_golden()))
    return lambda: load_dinov2(folder)


@kind("config.json", "model.safetensors")
def text(folder):
    write_text(folder, "llama3")
    return lambda: load_text_model(folder)


@kind("config.json")
def planned(folder):
    write_text(folder, "llama3")
    return lambda: model_of(str(folder))


@kind("m.gguf")
def gguf(folder):
    path = write_gguf(folder / "m.gguf")
    return lambda: (load_text_model(path), load_tokenizer(path))


@kind("m.onnx")
def exported(folder):
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "onnx::MatMul_7")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 2), ("y", 3))]
    node = helper.make_node("MatMul", ["x", weight.name], ["y"], name="/backbone/layernorm/MatMul")
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], [weight]))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return lambda: read_onnx(folder / "m.onnx")


@kind("tokenizer.json")
def words(folder):
    word_tokenizer(special=True).inner.save(str(folder / "tokenizer.json"))
    return lambda: load_tokenizer(folder).encode("one two")


@kind("vocab.txt")
def pieces_of_words(folder):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]))
    return lambda: load_tokenizer(folder).encode("ab a")


@kind("preprocessor_config.json")
def preprocessing(folder):
    content = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3}
    content |= {"crop_size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return lambda: load_preprocess(folder)


@kind("adapter.json", "adapter.safetensors")
def adapter(folder):
    arrays = {"0": {"query": {"down": np.ones((2, 6, 2), np.float32), "up": np.ones((2, 2, 6), np.float32)}}}
    arrays["1"] = {name: np.ones((2, 3, 4, 5), np.float32) for name in ("keys", "values")}
    save_adapter(folder, Stack([LoraAdapter(rank=2, targets=("query",)), TokenAdapter(length=3)]), arrays)
    return lambda: load_adapter(folder)


@cache
def _llama():
    with tempfile.TemporaryDirectory() as folder:
        return load_text_model(write_text(Path(folder) / "llama", "llama"))


@kind(CONFIG, WEIGHTS)
def peft(folder):
    with np.load(GOLDEN / "peft_tiny.npz") as file:
        write_theirs(folder, file, "prefix_llama")
    model = _llama()
    return lambda: load_peft(folder, model)


@kind("p.safetensors")
def prompt(folder):
    save_prompt(folder / "p.safetensors", PREFIXES["tokens and a state"], 7, {"model": "x"})
    return lambda: load_prompt(folder / "p.safetensors")


@kind("part.safetensors")
def part(folder):
    parts, whole = Parts(folder), {"keys": jnp.arange(12.0).reshape(3, 4), "count": jnp.asarray(7)}
    parts.put("part", whole)
    return lambda: parts.find("part", whole)


@kind("set.npz")
def archive(folder):
    npz(folder)
    return lambda: load_images(folder / "set.npz", size=8)


@kind("a/1.png")
def pictures(folder):
    classes(folder, {"a": 4, "b": 4})
    return lambda: load_images(folder, size=8)


@kind("train.jsonl", "labels.json")
def rows(folder):
    lines = [json.dumps({"text": f"text {index}", "label": index % 2}) for index in range(6)]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "labels.json").write_text('["no", "yes"]')
    return lambda: load_texts("text", folder)


@kind("train.jsonl")
def rows_without_names(folder):
    load = rows(folder)
    (folder / "labels.json").unlink()
    return load


@kind("results.json", "metrics.jsonl")
def run(folder):
    shutil.copytree(train_run(folder / "made"), folder, dirs_exist_ok=True)
    return lambda: sections(read_all([folder]))


def _results(path):
    def make(folder):
        shutil.copy(path, folder / "results.json")
        return lambda: sections(read_all([folder]))

    make.__name__ = path.stem
    return make


for _path in (RESULTS / "verify.json", RESULTS / "tables" / "vision" / "digits.json", RESULTS / "compression.json"):
    kind("results.json")(_results(_path))


@kind("run.json")
def options(folder):
    (folder / "run.json").write_text(json.dumps({"steps": 1, "data": "digits", "quick": True, "lengths": [2, 4]}))
    return lambda: checked_options(["--config", str(folder / "run.json")], Config)


@kind("settings.json")
def settings(folder):
    (folder / "checkpoints" / "1").mkdir(parents=True)
    (folder / "settings.json").write_text('{"epochs": 1, "adapter": "head", "remat": true}')
    return lambda: same_run(folder, {"epochs": 1, "adapter": "head", "remat": True}, goes_on_from="checkpoints")


@kind("square.json")
def pieces(folder):
    made = Pieces(folder, "1")
    made.get("square", {"of": 3}, lambda: {"is": 9})
    (file,) = folder.iterdir()
    file.rename(folder / "square.json")
    made.path = lambda *_: folder / "square.json"
    return lambda: made.get("square", {"of": 3}, lambda: {"is": 9})


_CHECKPOINT = ("arrays/manifest.ocdbt", "arrays/_METADATA", "arrays/d/*", "history/metadata", "digests.json")


@kind(*(f"run/1/{name}" for name in _CHECKPOINT))
def checkpoint(folder):
    config, x = TrainConfig(epochs=1), np.ones(16, np.float32)

    def loss(params, _, x):
        return jnp.mean((params["w"] - x[0]) ** 2)

    def work():
        return train(loss, {"w": jnp.zeros(3)}, None, (x,), config, checkpoints=Checkpoints(folder / "run"))

    work()
    return work
