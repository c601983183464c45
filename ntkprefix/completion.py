"""A script that teaches a shell to complete commands and options."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

SHELLS = ("bash", "zsh", "fish")
# tyro knows no options of the program itself, and where it has nothing it offers an empty word, for which bash offers
# no files.
_MORE = """
_ntkprefix() {
  local word=${COMP_WORDS[COMP_CWORD]}
  _tyro_ntkprefix "$@"
  [[ ${#COMPREPLY[@]} == 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
  [[ $COMP_CWORD == 1 && $word == -* ]] && COMPREPLY+=($(compgen -W "--version --completion" -- "$word"))
  return 0
}
complete -o default -F _ntkprefix ntkprefix
"""


def print_script(shell: str, modules: Mapping[str, str]) -> None:
    """Print the script.

    Args:
        shell: among `SHELLS`.
        modules: of commands by their names; each offers `Config`.

    Raises:
        ImportError: fewer than two modules, which are no choice.
        ValueError: another shell.

    Source: the completion of the package tyro, which knows the options.
    """
    if shell not in SHELLS:
        raise ValueError(f"--completion: expected one of {', '.join(SHELLS)}, got {shell!r}.")
    if len(modules) < 2:
        raise ImportError(
            "--completion: expected at least two commands whose packages are installed, got fewer. Install those of "
            'all, in the project\'s folder: pip install ".[models,report,theory]"'
        )
    kinds: tuple[Any, ...] = tuple(
        Annotated[_with_file(importlib.import_module(module).Config), tyro.conf.subcommand(name, prefix_name=False)]
        for name, module in modules.items()
    )
    with suppress(SystemExit):  # which is how it ends, having printed
        tyro.cli(  # type: ignore[call-overload]
            Union[kinds],  # noqa: UP007
            prog="ntkprefix",
            args=["--tyro-write-completion", shell, "-"],
            config=(tyro.conf.DisallowNone,),
        )
    if shell == "bash":
        print(_MORE, end="")


def _with_file(settings: type[Any]) -> type[Any]:
    """Settings with the option of every command that is none of them."""
    file = ("config", Path, dataclasses.field(default=Path()))
    return dataclasses.make_dataclass(settings.__name__, [file], bases=(settings,), frozen=True, kw_only=True)
