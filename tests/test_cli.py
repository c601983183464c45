"""The command line: help, the version, and errors of one line without a traceback."""

import dataclasses
import errno
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import tyro

import ntkprefix
from ntkprefix import TokenPrefix, cli
from ntkprefix.cli import Command, guard, main
from ntkprefix.parts import parts_folder
from ntkprefix.prompts import load_prompt, save_prompt
from ntkprefix.run_folder import SETTINGS, run_folder

ROOT = Path(__file__).parents[1]


def test_a_file_that_may_not_be_read_is_told_as_such(tmp_path, monkeypatch, capsys):
    path = tmp_path / "manual.safetensors"
    save_prompt(path, TokenPrefix(*jnp.ones((2, 3, 5, 1, 4))), start=5)

    def refused(*_, **__):  # also to root, who may read all
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    assert guard("program", lambda: load_prompt(path)) == 2
    told = f"program: {path}: permission denied. Change the permissions of it or of its folder, or give another.\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage_names_every_command(arguments, capsys):
    assert main(arguments) == (0 if arguments else 2)
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ntkprefix <command> [options]")
    for name, command in cli.COMMANDS.items():
        assert name in shown
        assert command.summary in shown
    assert "ntkprefix <command> --help" in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ntkprefix {ntkprefix.__version__}\n"


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "Check the convergence theorem" in shown
    assert "--quick" in shown
    assert "Training inputs." in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_says_what_one_gets_and_has_an_example_that_works(name, capsys):
    command = cli.COMMANDS[name]
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert command.gives
    assert " ".join(command.gives.split()) in " ".join(shown.split())
    assert f"\n  {command.example}\n" in shown
    program, named, *options = shlex.split(command.example)
    assert (program, named) == ("ntkprefix", name)
    tyro.cli(importlib.import_module(command.module).Config, args=options)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_in_words(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert not re.search(r"\(default: ('')?\)|\{None\}|`ntkprefix\.", shown)


@pytest.mark.parametrize(("name", "hint"), [("verfy", "'verify'"), ("--verison", "'--version'")])
def test_a_slip_is_pointed_out(name, hint, capsys):
    assert main([name]) == 2
    assert f"no command {name!r}. Did you mean {hint}?" in capsys.readouterr().err


BAD_OPTIONS = {
    "unknown": (["--lenghts", "4"], "Unrecognized options: --lenghts"),
    "text for a number": (["--n", "many"], "Error parsing --n"),
    "no value": (["--n"], "--n"),
    "no such choice": (["--data", "cats"], "invalid choice 'cats' for argument '--data'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case, capsys):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(SystemExit) as stopped:
        main(["verify", *options])
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.replace("│", " ").split())
    assert "Traceback" not in shown.err
    assert not shown.out


# Commands that take a seed, with what they cannot do without.
ALONE = (("train", []), ("compress", ["--prompt", "none", "--out", "none"]), ("generate", []), ("verify", []))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("verify", ["--sigma", "-1"], "sigma above 0 and finite, got -1.0"),
        ("verify", ["--seeds", "0"], "seeds of at least 5, for an interval that means something, got 0"),
        ("plan", ["--tokens", "0"], "tokens of at least 1, got 0"),
        *((name, [*options, "--seed", str(2**63)], f"a seed below 2^32, got {2**63}") for name, options in ALONE),
        ("generate", ["--new", "100000000000"], "at most 2,147,483,647 new tokens, got 100,000,000,000"),
        ("generate", ["--text", "a", "--top-p", "2"], "top_p above 0 and up to 1, got 2.0"),
        ("generate", ["--text", "a", "--temperature", "-1"], "a temperature of at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_one_sentence_and_where_to_read_on(capsys, name, options, said):
    assert main([name, *options]) == 2
    told = capsys.readouterr().err
    assert told == f"ntkprefix {name}: expected {said}.\nWhat options take: ntkprefix {name} --help\n"


def in_a_process(program, *, stdout):
    return subprocess.run(
        [sys.executable, "-c", program],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=False,
    )


@dataclasses.dataclass
class Settings:
    """Of a command that is made up."""

    size: int = 0


def raises(error):
    def work():
        raise error

    return work


EXPECTED = [
    ImportError("what"),
    FileNotFoundError("what"),
    ValueError("what"),
    FloatingPointError("what"),
    OverflowError("what"),
    MemoryError("what"),
    jax.errors.JaxRuntimeError("what"),
]


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_what_users_cause_is_one_line(error, capsys):
    assert guard("program", raises(error)) == 2
    assert capsys.readouterr().err == "program: what\n"


@pytest.mark.parametrize(
    ("told", "shown"),
    [("plan: what", "what"), ("planning: what", "planning: what"), ("load: plan: what", "load: plan: what")],
)
def test_the_command_is_named_once(told, shown, capsys):
    assert guard("ntkprefix plan", raises(ValueError(told))) == 2
    assert capsys.readouterr().err == f"ntkprefix plan: {shown}\n"


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(capsys):
    assert guard("program", raises(ValueError("\x1b[31mX.jpg: no image\nTry: another"))) == 2
    assert capsys.readouterr().err == "program: \\x1b[31mX.jpg: no image\nTry: another\n"


def test_an_error_without_words_is_named(capsys):
    assert guard("program", raises(MemoryError())) == 2
    assert capsys.readouterr().err == "program: MemoryError\n"


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(KeyError):
        guard("program", raises(KeyError("a mistake")))


def test_an_interrupt_tells_how_to_go_on_where_something_is_kept(tmp_path, capsys):
    def work():
        with run_folder(tmp_path / "run") as folder:
            (folder / "checkpoints" / "1").mkdir(parents=True)
            raise KeyboardInterrupt

    assert guard("ntkprefix train", work) == 130
    kept = f"What is done is kept in {tmp_path / 'run'}: the same command, with the same --out, goes on from there."
    assert capsys.readouterr() == ("", f"ntkprefix train: stopped. {kept}\n")


def test_an_interrupt_before_anything_is_kept_is_quiet(tmp_path, capsys):
    def work():
        with parts_folder(tmp_path / "run"):
            raise KeyboardInterrupt

    assert guard("ntkprefix compress", work) == 130
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_before_the_first_checkpoint_leaves_nothing(tmp_path, capsys):
    def work():
        with run_folder(tmp_path / "run") as folder:
            (folder / SETTINGS).write_text("{}")
            raise KeyboardInterrupt

    assert guard("ntkprefix train", work) == 130
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()  # it was there before
    assert guard("ntkprefix train", work) == 130
    assert [path.name for path in (tmp_path / "run").iterdir()] == [SETTINGS]


PROCESS = """
import atexit, gc, os, signal, sys, time
from ntkprefix import cli

def lose(*_):
    gc.callbacks.remove(lose)
    raise KeyboardInterrupt  # which Python ignores here

def interrupted(_):
    raise KeyboardInterrupt

def lost(_):
    gc.callbacks.append(lose)
    gc.collect()
    for _ in range(600):  # one long sleep may begin behind the signal
        time.sleep(0.1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
atexit.register(os.kill, os.getpid(), signal.SIGKILL)
cli._dispatch = {work}
cli.program()
"""


@pytest.mark.parametrize("work", ["interrupted", "lost"])
def test_an_interrupted_process_ends_at_once(work):
    """Also where the interpreter would crash in its last moments, or the interrupt comes where Python ignores it."""
    ended = in_a_process(PROCESS.replace("{work}", work), stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_what_else_python_ignores_is_told(capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", cli._interrupt_again)

    class Odd:
        def __del__(self):
            raise ValueError("odd")

    Odd()
    assert "ValueError: odd" in capsys.readouterr().err


def test_closed_streams(tmp_path):
    program = "import sys; from ntkprefix.cli import program; sys.argv[1:] = {}; program()"
    for words, closed, status, told in (
        (["--version"], ">&-", 0, ""),
        (["generate", "--model", str(tmp_path), "--new", "1"], "<&-", 2, f"{tmp_path}"),
    ):
        command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program.format(words)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert ended.returncode == status
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr


def test_interrupt_is_quiet(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "stopped", SimpleNamespace(Config=Settings, main=raises_interrupt))
    monkeypatch.setitem(cli.COMMANDS, "stop", Command("stopped", "stop", (), "", ""))
    assert main(["stop"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("train: it takes 3 GB. Take less."), "train: it takes 3 GB. Take less"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmuch\nmore"),
            "RESOURCE_EXHAUSTED: Out of memory",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 9 bytes."),
            "INTERNAL: Out of memory allocating 9 bytes",
        ),
    ],
)
def test_memory_that_is_not_enough_is_told_with_what_takes_less(error, told, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "greedy", SimpleNamespace(Config=Settings, main=lambda _: raises(error)()))
    monkeypatch.setitem(cli.COMMANDS, "greedy", Command("greedy", "", (), "", "fewer --things"))
    assert main(["greedy"]) == 2
    assert capsys.readouterr().err == f"ntkprefix greedy: {told}. What takes less: fewer --things.\n"


def test_other_errors_of_the_device_stay_as_they_are(capsys, monkeypatch):
    error = jax.errors.JaxRuntimeError("INTERNAL: what")
    monkeypatch.setitem(sys.modules, "broken", SimpleNamespace(Config=Settings, main=lambda _: raises(error)()))
    monkeypatch.setitem(cli.COMMANDS, "broken", Command("broken", "", (), "", "fewer --things"))
    assert main(["broken"]) == 2
    assert capsys.readouterr().err == "ntkprefix broken: INTERNAL: what\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_what_takes_less_memory_are_options_that_the_command_has(name):
    command = cli.COMMANDS[name]
    fields = {field.name for field in dataclasses.fields(importlib.import_module(command.module).Config)}
    assert {option.replace("-", "_") for option in re.findall(r"--([\w-]+)", command.less_memory)} <= fields


def raises_interrupt(_):
    raise KeyboardInterrupt


def test_the_message_names_the_command(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    small = ["--lengths", "2", "4", "6", "--kernel-lengths", "2", "4", "6", "--steps", "2", "--quick"]
    assert main(["verify", *small, "--out", str(tmp_path / "file" / "run")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ntkprefix verify: ")
    assert str(tmp_path / "file") in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("package", cli.COMMANDS["verify"].needs)
def test_missing_extras_are_named_before_anything_runs(package):
    program = f"import sys; sys.modules[{package!r}] = None; from ntkprefix.cli import main; sys.exit(main(['verify']))"
    ended = in_a_process(program, stdout=subprocess.PIPE)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"ntkprefix verify: needs {package}, not installed. Install what is missing, in the project's folder: "
        'pip install ".[theory]" && pip install --no-deps neural-tangents\n'
    )
    assert not ended.stdout


@pytest.mark.parametrize(
    ("name", "extra", "apart"), [("verify", "theory", {"neural_tangents"}), ("report", "report", set())]
)
def test_what_a_command_needs_is_what_its_extra_installs(name, extra, apart):
    """Every package that it imports, and that ntkprefix itself does not bring, is looked for."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[><=]", requirement)[0] for requirement in extras[extra]}
    assert set(cli.COMMANDS[name].needs) == names | apart


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    ended = in_a_process("import sys; from ntkprefix.cli import main; sys.exit(main(['--help']))", stdout=write)
    os.close(write)
    assert ended.returncode == 1
    assert ended.stderr == ""
