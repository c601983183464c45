"""The commands that leave results, on models small enough to be run and killed a hundred times.

Each is run in a process of its own, forked from one that has imported everything already: `ended(started(...))`.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
from dataclasses import dataclass

import jax
from safetensors import safe_open

from ntkprefix.cli import main
from ntkprefix.runs import PARTIAL

# Of the commands; the theory's bring all that is theirs.
_IMPORTED = ["faults.commands", "ntkprefix.commands.compress", "ntkprefix.commands.train", "theory.plots"]
# What makes, moves or removes a file.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree"}

TRAINING = ["--adapter", "lora:rank=2", "--size", "28", "--train-rows", "48", "--test-rows", "20", "--epochs", "4"]
TRAINING += ["--head-epochs", "1", "--batch-size", "16"]
LADDER = "--n 4 --d 3 --n-test 3 --seeds 5 --kernel-seeds 5 --steps 20 --lengths 4 8 16 --kernel-lengths 4 8 16"
LADDER += " --scaling-lengths 2 4 8 --scaling-max-steps 16 --scaling-seeds 5 --scaling-n 3 4 --scaling-d 3 4"
LADDER += " --scaling-sigma 0.5 0.6"


def train(vit, out):
    return ["train", "--model", str(vit), *TRAINING, "--checkpoint-every", "1", "--out", str(out / "run")]


def train_state(vit, out):
    """With an epoch that is chosen on rows held back, and checkpoints as often as they come by themselves."""
    options = [*TRAINING, "--adapter", "features:share=0.3,steps=state", "--patience", "3"]
    return ["train", "--model", str(vit), *options, "--out", str(out / "run")]


def verify(_, out):
    return ["verify", *LADDER.split(), "--out", str(out / "run")]


def compress(gguf, out):
    options = ["--budget", "60 tokens", "--chunk", "16", "--method", "matching"]
    options += ["--share", "even", "--queries", "continue", "--dtype", "float32"]
    prompt = gguf.parent / "prompt.txt"
    return ["compress", "--model", str(gguf), "--prompt", str(prompt), *options, "--out", str(out / "p.safetensors")]


def compress_distil(gguf, out):
    return [*compress(gguf, out), "--distil", "3"]


# Those that begin alike take the same model.
COMMANDS = {
    "train": train,
    "train-state": train_state,
    "verify": verify,
    "compress": compress,
    "compress-distil": compress_distil,
}


@dataclass(frozen=True)
class Fault:
    """What befalls a command.

    Attributes:
        change: it is killed as it makes its so-manieth change of a file below its folder; never if 0.
        largest: bytes that a file can have, as if the disk were full there; any if 0.
        deadly: what writes more is killed, with so many bytes written.
    """

    change: int = 0
    largest: int = 0
    deadly: bool = False


def started(arguments, out, fault=None, cache=None):
    """A process that runs `ntkprefix` with these arguments.

    What it says, and how many changes of files below the folder `out` it made, is in files beside that.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    # A pipe, as it has room on a full disk.
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(arguments, out, fault or Fault(), cache, theirs))
    process.start()
    theirs.close()
    process.listener = threading.Thread(target=_listen, args=(ours, out.with_suffix(".said")))
    process.listener.start()
    return process


def _listen(pipe, path):
    with path.open("wb") as file:
        while content := os.read(pipe.fileno(), 2**16):
            file.write(content)


def ended(process, timeout=300):
    """Its exit status; minus the signal's number if one ended it."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"still running after {timeout} s")
    process.listener.join()
    return process.exitcode


def said(out):
    return out.with_suffix(".said").read_text()


def changes(out):
    return int(out.with_suffix(".changes").read_text())


def assert_whole(out):
    """That no file that has its name is half-written."""
    for file in (file for file in out.rglob("*") if file.is_file() and "checkpoints" not in file.parts):
        content = file.read_bytes()
        if file.name.startswith("."):
            assert file.name.endswith(PARTIAL), file
        elif file.suffix == ".json":
            json.loads(content)
        elif file.suffix == ".jsonl":
            for line in content.splitlines(keepends=True):
                assert json.loads(line) if line.endswith(b"\n") else content.endswith(line)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as opened:
                assert [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118 - no mapping
        else:
            assert content.endswith({".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF\n"}[file.suffix]), file


def outcome(out):
    """What a command left, without what tells when and where."""
    found = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    found = {name: content for name, content in found.items() if "checkpoints" not in name}
    for name, content in found.items():
        if name.endswith("results.json"):
            results = json.loads(content)
            del results["environment"], results["config"]["out"]
            found[name] = {key: value for key, value in results.items() if key != "times"}
        elif name.endswith(".jsonl"):
            lines = map(json.loads, content.splitlines())
            found[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        elif name == "p.safetensors":
            with safe_open(out / name, framework="numpy") as opened:
                found[name] = {key: opened.get_tensor(key).tolist() for key in opened.keys()}  # noqa: SIM118
    return found


def _run(arguments, out, fault, cache, pipe):
    for stream in (1, 2):
        os.dup2(pipe.fileno(), stream)
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if fault.largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest, fault.largest))
    if fault.deadly:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
    made = _count(str(out), fault.change)
    status = main(arguments)
    out.with_suffix(".changes").write_text(str(len(made)))
    sys.exit(status)


def _count(below, last):
    """The changes of files below a folder, which grow as they are made; the last of them is not."""
    made = []

    def note(event, arguments):
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (written or event in _CHANGES) and str(arguments[0]).startswith(below):
            made.append(event)
            if len(made) == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
    return made
