"""Run the notebooks from top to bottom and store their outputs in them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def run(path: Path, parameters: Mapping[str, Any] | None = None) -> Any:
    """Execute a notebook.

    Args:
        path: of the notebook.
        parameters: values assigned after the cell tagged "parameters".

    Returns:
        The executed notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message shows it.
        ValueError: parameters are given and no cell, or more than one, is tagged.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
        if len(tagged) != 1:
            raise ValueError(f"{path}: expected one cell tagged 'parameters', found {len(tagged)}.")
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's transport, not of the notebook
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    return notebook


def main() -> None:
    """Run every notebook and write it back with its outputs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        print(f"running {path.name} ...", flush=True)
        notebook = run(path)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of this run would change the file every time
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
