"""The command line: `ntkprefix <command> [options]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

# Name of a command: its module, which offers `Config`, a dataclass, and `main(config) -> int`, the exit status; and
# what the command does. Only the module of the command that runs is imported.
COMMANDS = {
    "verify": ("theory.verify", "check the convergence theorem over a ladder of prefix lengths"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process when absent.

    Returns:
        Exit status: 0 for success, 1 when what was checked does not hold, 2 when the command could not run.

    Example:
        >>> from ntkprefix.cli import main
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: ntkprefix <command> [options]
        ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *options = arguments
    if name not in COMMANDS:
        print(f"ntkprefix: no command {name!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return _run(name, options)


def _run(name: str, options: list[str]) -> int:
    module_name, summary = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
        config = tyro.cli(module.Config, args=options, prog=f"ntkprefix {name}", description=summary)
        return module.main(config)
    except (ImportError, OSError, ValueError) as error:
        # Missing extras and unusable settings or files: the message says what to do, a traceback would bury it.
        print(f"ntkprefix {name}: {error}", file=sys.stderr)
        return 2


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: ntkprefix <command> [options]", "", "commands:"]
    lines += [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "ntkprefix <command> --help lists a command's options."])


if __name__ == "__main__":
    sys.exit(main())
