"""Commands that are killed, interrupted, out of room or run twice leave whole files, and go on to the same results."""

import os
import signal
import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from faults.commands import COMMANDS, Fault, assert_whole, changes, ended, outcome, said, started
from models.dinov2_folders import tiny_golden, weights_of, write_folder
from models.tiny_gguf import write_gguf

# At random moments, and at changes of files.
KILLS, CHANGES = 50, 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models, and what compiled programs are kept in."""
    folder = tmp_path_factory.mktemp("kills")
    gguf = write_gguf(folder / "m.gguf")
    (folder / "prompt.txt").write_text("ab a b " * 40)
    models = {"train": write_folder(folder / "vit", weights_of(tiny_golden())), "compress": gguf, "verify": None}
    models |= {command: models[command.partition("-")[0]] for command in COMMANDS}
    return SimpleNamespace(folder=folder, models=models, cache=folder / "cache")


@pytest.fixture(scope="module")
def run(place):
    """Starts a command, which leaves what it does in a folder of that name."""

    def run(command, name, fault=None):
        out = place.folder / name
        return started(COMMANDS[command](place.models[command], out), out, fault, place.cache)

    return run


@pytest.fixture(scope="module")
def finish(place, run):
    """Runs a command to its end, from what is there, and gives what it leaves."""

    def finish(command, name):
        assert ended(run(command, name)) == int(command == "verify"), said(place.folder / name)
        return outcome(place.folder / name)

    return finish


@pytest.fixture(scope="module")
def undisturbed(place, finish):
    """What a command leaves that nothing befalls, and the changes of files that it makes."""

    @cache
    def undisturbed(command):
        left = finish(command, f"whole-{command}")
        return SimpleNamespace(left=left, changes=changes(place.folder / f"whole-{command}"))

    return undisturbed


@pytest.fixture(scope="module")
def seconds(finish, undisturbed):
    """How long a command takes whose programs are compiled."""

    @cache
    def seconds(command):
        undisturbed(command)
        began = time.monotonic()
        finish(command, f"timed-{command}")
        return time.monotonic() - began

    return seconds


def parts(out):
    """Of a compression: every chunk, layer and so on that is done, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("p.safetensors.parts/*/*.safetensors")}


def assert_only_the_step_in_progress_is_lost(out, before):
    """A checkpoint of every step: the newest that is whole is that of the last step told, or of the one before.

    Where checkpoints come by themselves, as many steps are lost as the clock has it. What was done of a compression
    `before` it went on is there as it was, until what came of it is.
    """
    assert (out / "p.safetensors").exists() or parts(out).items() >= before.items()
    if not (out / "run" / "metrics.jsonl").exists() or "train-state" in out.name:
        return
    told = (out / "run" / "metrics.jsonl").read_bytes().count(b'"loss"')
    kept = [int(path.name) for path in (out / "run" / "checkpoints").glob("*") if path.name.isdecimal()]
    assert told - max(kept, default=0) <= 1


@pytest.mark.parametrize("command", ["train", *(pytest.param(each, marks=pytest.mark.slow) for each in COMMANDS)])
def test_killed_as_it_writes(command, request, place, run, finish, undisturbed):
    """At moments at which a file can be half-written; more of them in the slow tests."""
    whole, random = undisturbed(command), np.random.default_rng(0)
    slow = request.node.get_closest_marker("slow") is not None
    count = min(CHANGES, whole.changes) if slow else 2
    name = f"writing-{command}-{slow}"
    for change in random.permutation(np.arange(1, whole.changes + 1))[:count]:
        kept = parts(place.folder / name)
        status = ended(run(command, name, Fault(change=int(change))))
        # Once it has gone on from a checkpoint there may not be so many changes left.
        assert status in (-signal.SIGKILL, 0, 1), said(place.folder / name)
        assert_whole(place.folder / name)
        assert_only_the_step_in_progress_is_lost(place.folder / name, kept)
        if status != -signal.SIGKILL:
            name = f"{name}-"
    assert finish(command, name) == whole.left


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(command, place, run, finish, undisturbed, seconds):
    """Dozens of times. Where a run gets to its end in spite of it, results are compared, and another begins."""
    whole, length, random = undisturbed(command), seconds(command), np.random.default_rng(1)
    killed, finished = 0, 0
    while killed < KILLS:
        name = f"random-{command}-{finished}"
        kept = parts(place.folder / name)
        process = run(command, name)
        process.join(random.uniform(0, 0.9 * length))
        process.kill()
        if ended(process) == -signal.SIGKILL:
            killed += 1
            assert_whole(place.folder / name)
            assert_only_the_step_in_progress_is_lost(place.folder / name, kept)
        else:
            assert outcome(place.folder / name) == whole.left
            finished += 1
    assert finish(command, name) == whole.left


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_from_the_keyboard(command, place, run, finish, undisturbed, seconds):
    """It ends with the status that shells expect and no traceback, and goes on like one that was killed."""
    whole, length, random = undisturbed(command), seconds(command), np.random.default_rng(2)
    name = f"interrupted-{command}"
    for _ in range(10):
        process = run(command, name)
        process.join(random.uniform(0.3, 0.9) * length)
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        status = ended(process)
        assert status in (130, int(command == "verify")), said(place.folder / name)
        # Python loses a signal that comes in the midst of a callback of its garbage collector, and says so.
        assert status != 130 or "Traceback" not in said(place.folder / name)
    assert finish(command, name) == whole.left


# What fits in a file, and what does not fit then.
FULL = {
    "train, a checkpoint": ("train", 2000, "run/checkpoints/"),
    "verify, a piece": ("verify", 100, "run/pieces/"),
    "verify, a plot": ("verify", 30_000, "run/kernel.png"),
    "compress, a part": ("compress", 1000, "p.safetensors.parts/"),
    "compress, the result": ("compress", 10_000, "p.safetensors: "),
}


every_disk = pytest.mark.parametrize(
    "case", [case if case == "train, a checkpoint" else pytest.param(case, marks=pytest.mark.slow) for case in FULL]
)


@every_disk
def test_killed_with_a_file_half_written(case, place, run, finish, undisturbed):
    command, largest, _ = FULL[case]
    whole, name = undisturbed(command), f"half-{case.replace(', ', '-').replace(' ', '-')}"
    fault = Fault(largest=largest, deadly=True)
    assert ended(run(command, name, fault)) == -signal.SIGXFSZ, said(place.folder / name)
    assert_whole(place.folder / name)
    assert finish(command, name) == whole.left


@every_disk
def test_full_disks(case, place, run, finish, undisturbed):
    command, largest, what = FULL[case]
    whole, name = undisturbed(command), f"full-{case.replace(', ', '-').replace(' ', '-')}"
    out = place.folder / name
    assert ended(run(command, name, Fault(largest=largest))) == 2
    assert "Traceback" not in said(out)
    told = said(out).splitlines()[-1]
    assert told.startswith(f"ntkprefix {command}: {out}/{what}")
    assert "cannot be written" in told
    assert_whole(out)
    assert finish(command, name) == whole.left


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_at_a_time_are_one_and_a_refusal(command, place, run, undisturbed):
    undisturbed(command)  # compiles
    out = place.folder / f"two-{command}"
    arguments = COMMANDS[command](place.models[command], out)
    first, second = (started(arguments, place.folder / f"two-{command}", cache=place.cache) for _ in range(2))
    statuses = sorted([ended(first), ended(second)])
    assert statuses == [int(command == "verify"), 2], said(out)
