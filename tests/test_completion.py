"""`ntkprefix --completion`: what a shell offers, asked in the shell."""

import dataclasses
import importlib
import shutil
import subprocess
import sys

import pytest

from ntkprefix import cli
from ntkprefix.cli import COMMANDS, main
from ntkprefix.completion import SHELLS
from ntkprefix.compress import METHODS

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
$(complete -p ntkprefix | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ntkprefix"
    program = "import sys; from ntkprefix.cli import main; sys.exit(main(['--completion', 'bash']))"
    path.write_text(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    return path


@pytest.fixture
def offered(script):
    """What bash offers behind these words."""
    if not shutil.which("bash"):
        pytest.skip("no bash")

    def offered(*words):
        command = ["bash", "-c", ASK, "bash", str(script), "ntkprefix", *words]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        assert not told.stderr
        return told.stdout.split("\n")[:-1]

    return offered


def test_commands(offered):
    assert set(offered("")) >= set(COMMANDS)
    assert offered("tr") == ["train"]
    assert set(offered("--")) == {"--help", "--version", "--completion"}
    assert offered("report", "--conf") == ["--config"]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_and_nothing_else(name, offered):
    """Of help texts nothing gets among them."""
    fields = {field.name for field in dataclasses.fields(importlib.import_module(COMMANDS[name].module).Config)}
    found = [word for word in offered(name, "-") if word not in ("-h", "--help", "--config")]
    names = {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in found}
    assert names == fields - ({"runs"} if name == "report" else set())  # which have no name there
    assert all(word.startswith("--") for word in found)


def test_choices(offered):
    assert offered("train", "--schedule", "") == ["cosine", "linear", "constant"]
    assert offered("compress", "--share", "n") == ["need"]
    assert offered("compress", "--method", "") == list(METHODS)


def test_where_nothing_is_known_bash_offers_files(script):
    if not shutil.which("bash"):
        pytest.skip("no bash")
    ask = f"source {script}; COMP_WORDS=(ntkprefix report ru); COMP_CWORD=2; _ntkprefix; echo ${{#COMPREPLY[@]}} words"
    ask += "; complete -p ntkprefix"
    told = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True).stdout
    assert told == "0 words\ncomplete -o default -F _ntkprefix ntkprefix\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell, capsys):
    assert main(["--completion", shell]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}" in printed for name in (*COMMANDS, "micro-batches", "kernel-lengths"))
    assert printed.count("'--config'") == len(COMMANDS)


@pytest.mark.parametrize("shell", [["ksh"], [], ["bash", "zsh"]])
def test_other_shells_are_refused(shell, capsys):
    assert main(["--completion", *shell]) == 2
    told = f"--completion: expected one of bash, zsh, fish, got {' '.join(shell)!r}.\n"
    assert capsys.readouterr().err == f"ntkprefix: {told}"


def test_commands_without_their_packages_are_left_out(capsys, monkeypatch):
    def missing(command):
        return ["optax"] if command.module in ("ntkprefix.commands.train", "ntkprefix.commands.sweep") else []

    monkeypatch.setattr(cli, "_missing", missing)
    assert main(["--completion", "bash"]) == 0
    assert "micro-batches" not in capsys.readouterr().out
    monkeypatch.setattr(cli, "_missing", lambda _: ["optax"])
    assert main(["--completion", "bash"]) == 2
    assert 'pip install ".[models,report,theory]"' in capsys.readouterr().err
