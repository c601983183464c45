"""The command line: `ntkprefix <command> [options]`."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import tyro

from ntkprefix import hosts
from ntkprefix._version import __version__
from ntkprefix.checks.describe import printable
from ntkprefix.given_options import checked_options
from ntkprefix.memory import out_of_memory


class Command(NamedTuple):
    """One command.

    Attributes:
        module: offers `Config`, a dataclass, and `main(config) -> int`, the exit status. It is imported when the
            command runs, and only then.
        summary: what the command does.
        needs: packages beyond ntkprefix's own dependencies, by the names they are imported under.
        install: the shell command that installs them.
        less_memory: what makes it take less.
        gives: what one has when it has run, in sentences.
        example: a command line.
    """

    module: str
    summary: str
    needs: tuple[str, ...]
    install: str
    less_memory: str
    gives: str = ""
    example: str = ""

    def page(self) -> str:
        """What its help begins with."""
        summary = f"{self.summary[:1].upper()}{self.summary[1:]}."
        # Lines that are set in stay lines.
        gives = textwrap.fill(self.gives, 80, initial_indent="  ", subsequent_indent="  ")
        return f"{summary}\n\nYou get:\n{gives}\n\nExample:\n  {self.example}"


_MODELS = ("flax", "gguf", "onnx", "optax", "orbax", "PIL", "safetensors", "threadpoolctl", "tokenizers")
COMMANDS = {
    "train": Command(
        module="ntkprefix.commands.train",
        summary="adapt a pretrained model to images or texts",
        needs=_MODELS,
        install='pip install ".[models]"',
        less_memory="--micro-batches, --remat, --dtype bfloat16, a smaller --adapter, --size or --length",
        gives="a run folder with the adapter, the head, metrics and checkpoints, and results.json, which has how often "
        "held-out rows are right. A run that was stopped goes on when it is started again with its folder.",
        example="ntkprefix train --model minilm --task sst2 --data-dir data/sst2 --adapter lora:rank=8 --out runs/sst2",
    ),
    "sweep": Command(
        module="ntkprefix.commands.sweep",
        summary="list runs of train over adapters, step sizes and seeds, a command a line",
        needs=_MODELS,
        install='pip install ".[models]"',
        less_memory="fewer --adapters, --learning-rates or --seeds",
        gives="a list of commands, each a run of its own for any scheduler, checked before the first is printed. "
        "ntkprefix report merges what they find.",
        example="ntkprefix sweep --adapters lora:rank=4 tokens:length=9 --seeds 0 1 2 --runs runs/digits --out runs.sh",
    ),
    "compress": Command(
        module="ntkprefix.commands.compress",
        summary="turn a long prompt into a small file that stands for it",
        needs=_MODELS,
        install='pip install ".[models]"',
        less_memory="a smaller --chunk, or fewer --tokens",
        gives="a file that `ntkprefix generate` puts in the prompt's place, and how far off attention outputs are "
        "behind it, and in which heads most.",
        example="ntkprefix compress --prompt manual.txt --budget 32x --out manual.safetensors",
    ),
    "generate": Command(
        module="ntkprefix.commands.generate",
        summary="continue a text, behind a compressed prompt",
        needs=_MODELS,
        install='pip install ".[models]"',
        less_memory="fewer --new tokens, or a shorter text",
        gives="every text with its continuation, on the standard output.",
        example='ntkprefix generate --prefix manual.safetensors --text "Chapter 3 is about"',
    ),
    "plan": Command(
        module="ntkprefix.commands.plan",
        summary="count what a training step costs on many devices, without them",
        needs=_MODELS,
        install='pip install ".[models]"',
        less_memory="fewer --tokens",
        gives="memory, operations and exchanges of one device, for a prefix of explicit tokens and for a state that "
        "stands for one.",
        example="ntkprefix plan --model llama-8b --meshes tensor=8 data=8,tensor=8",
    ),
    "verify": Command(
        module="theory.verify",
        summary="check the convergence theorem over a ladder of prefix lengths",
        needs=("frozendict", "matplotlib", "neural_tangents", "optax", "scipy"),
        install='pip install ".[theory]" && pip install --no-deps neural-tangents',
        less_memory="shorter --lengths and --kernel-lengths, or fewer --seeds",
        gives="seven verdicts with their intervals, and a run folder with results.json and plots as PNG and PDF. The "
        "exit status is 1 when a verdict does not hold. A run that was stopped goes on when it is started again with "
        "its folder.",
        example="ntkprefix verify --quick --out runs/quick",
    ),
    "report": Command(
        module="ntkprefix.commands.report",
        summary="show runs and result files on one HTML page",
        needs=("optax", "plotly", "scipy"),
        install='pip install ".[report]"',
        less_memory="fewer runs at a time",
        gives="one HTML file with tables, intervals and interactive plots, which needs no network.",
        example="ntkprefix report runs/lora-0 runs/lora-1 runs/features-0 --out report.html",
    ),
}

# Missing packages, unusable settings and files, numbers or arrays too large for the machine: the message says what to
# do, and a traceback would bury it. Anything else is a mistake of ours, whose traceback is worth having.
# Exit statuses: what could not run, and 128 + SIGINT, as shells have it.
_FAILED, _INTERRUPTED = 2, 130
# Seconds after which an interrupt that was lost is given again.
_SOON = 0.05
_EXPECTED = (ImportError, OSError, ValueError, ArithmeticError, MemoryError, jax.errors.JaxRuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process when absent.

    Returns:
        Exit status: 0 for success, 1 when what was checked does not hold, 2 when the command could not run, 130 when
        it was interrupted.

    Raises:
        SystemExit: with status 2, the command has no such option, or it takes no such value; with 0, its help was
            asked for.

    Example:
        >>> from ntkprefix.cli import main
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: ntkprefix <command> [options]
        ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = guard("ntkprefix", lambda: _dispatch(arguments))
    except BaseException:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            hosts.leave(1)
        raise
    if status in (_FAILED, _INTERRUPTED):
        hosts.leave(status)
    return status


def program() -> NoReturn:
    """The process `ntkprefix`: the command line, until it ends or is interrupted.

    Raises:
        SystemExit: with the status of `main`.
    """
    sys.unraisablehook = _interrupt_again
    try:
        status = main()
    except KeyboardInterrupt:
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        # What the interpreter does in its last moments, while XLA's threads compile, has ended in a segmentation fault.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(status)
    sys.exit(status)


def _interrupt_again(lost: Any) -> None:
    """An interrupt that came where Python lets exceptions go, in the midst of collecting garbage, comes once more."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    again = threading.Timer(_SOON, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def guard(program: str, work: Callable[[], int]) -> int:
    """Do a program's work, with what its user can cause told in one message on stderr instead of a traceback.

    Args:
        program: named at the start of the message; its last word is not repeated if the error begins with it.
        work: returns the exit status.

    Returns:
        What `work` returned; 2 when it could not run; 130 when it was interrupted.

    Example:
        >>> from ntkprefix.cli import guard
        >>> guard("demo", lambda: 0)
        0
    """
    try:
        status = work()
        if sys.stdout is not None:  # it may have been closed before
            sys.stdout.flush()
        return status
    except KeyboardInterrupt as stopped:
        for how_to_go_on in getattr(stopped, "__notes__", ()):
            print(f"{program}: stopped. {printable(how_to_go_on)}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough. Python flushes stdout once more as it ends: let that succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _EXPECTED as error:
        # A file's name, quoted in a message, may hold what a terminal would obey.
        told = _may_not(error) if isinstance(error, PermissionError) else str(error) or type(error).__name__
        lines = told.removeprefix(f"{program.split()[-1]}: ").splitlines()
        print(f"{program}: {chr(10).join(map(printable, lines))}", file=sys.stderr)
        return _FAILED


def _may_not(error: PermissionError) -> str:
    """Python's own names the file alone; ours say what to do."""
    if error.filename is None:
        return str(error)
    return f"{error.filename}: permission denied. Change the permissions of it or of its folder, or give another."


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ntkprefix {__version__}")
        return 0
    name, *options = arguments
    if name == "--completion":
        return _complete(options)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version", "--completion"], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"ntkprefix: no command {name!r}.{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    # The message of an error names the command.
    return guard(f"ntkprefix {name}", lambda: _run(name, options))


def _missing(command: Command) -> list[str]:
    return [package for package in command.needs if importlib.util.find_spec(package) is None]


def _complete(shell: list[str]) -> int:
    from ntkprefix.completion import print_script

    # Commands whose packages are not there cannot say their options; they would not run either.
    print_script(" ".join(shell), {name: each.module for name, each in COMMANDS.items() if not _missing(each)})
    return 0


def _run(name: str, options: list[str]) -> int:
    command = COMMANDS[name]
    # Looked for before anything runs: plots are drawn last, after what may be an hour of computing.
    missing = _missing(command)
    if missing:
        raise ImportError(
            f"needs {', '.join(missing)}, not installed. Install what is missing, in the project's folder: "
            f"{command.install}"
        )
    module = importlib.import_module(command.module)
    config = tyro.cli(
        _made(module.Config, name),
        args=checked_options(options, module.Config),
        prog=f"ntkprefix {name}",
        description=command.page(),
        config=(tyro.conf.DisallowNone,),
    )
    try:
        return module.main(config)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not out_of_memory(error):
            hosts.gone(error)
            raise
        said = f"{error}".partition("\n")[0].rstrip(".") or "out of memory"
        raise MemoryError(f"{said}. What takes less: {command.less_memory}.") from error


def _made(config: type, command: str) -> Callable[..., Any]:
    """Makes a configuration. Unlike a class's, tyro leaves a function's errors to `guard`, which names the command."""

    @functools.wraps(config, updated=())
    def make(*settings: Any, **named: Any) -> Any:
        try:
            return config(*settings, **named)
        except ValueError as error:
            raise ValueError(f"{error}\nWhat options take: ntkprefix {command} --help") from error

    return make


def _usage() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: ntkprefix <command> [options]",
            "",
            "Prefixes of any length for transformers: train them, put one in a long prompt's place, check the theorem.",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "Example:",
            f"  {COMMANDS['compress'].example}",
            "",
            "ntkprefix <command> --help  tells what a command gives, with an example, and lists its options",
            "ntkprefix <command> --config FILE  takes options from a JSON object, below those of the command line",
            "ntkprefix --completion SHELL  prints a script by which bash, zsh or fish completes commands and options",
            "ntkprefix --version         shows the version",
        ]
    )


if __name__ == "__main__":
    program()
