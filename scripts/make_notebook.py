"""Run docs/notebook.ipynb again from a clean kernel, and save it with its outputs, without what changes by itself."""

import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"
TIMEOUT_S = 120
"""Of a cell."""
QUIETLY = {"PYTHONWARNINGS": "ignore:IProgress not found"}
"""A library asks for progress bars of another package where it sees a notebook; the outputs are not about that."""


def main() -> None:
    """Write the file again, if every cell ran."""
    made = executed(nbformat.read(NOTEBOOK, as_version=4))
    nbformat.write(made, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {len(made.cells)} cells, {NOTEBOOK.stat().st_size / 1000:.0f} kB")


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy, run from top to bottom by this Python in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; the message has its traceback.
    """
    copy = nbformat.from_dict(notebook)
    for place, cell in enumerate(copy.cells):
        cell.id, cell.metadata = f"cell-{place:02}", {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    with tempfile.TemporaryDirectory() as folder:
        at = {"metadata": {"path": folder}}
        client = NotebookClient(copy, timeout=TIMEOUT_S, kernel_name="python3", record_timing=False, resources=at)
        client.execute(env=os.environ | QUIETLY)
    copy.metadata["language_info"] = {"name": "python"}  # not the version that happened to run it
    for cell in copy.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            _settle(output)
    nbformat.validate(copy)
    return copy


def _settle(output: nbformat.NotebookNode) -> None:
    """Take out what is another each time: addresses of objects, and what a renderer notes beside a picture."""
    output.pop("metadata", None)
    if output.output_type in ("display_data", "execute_result"):
        output["metadata"] = {}
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])


if __name__ == "__main__":
    main()
