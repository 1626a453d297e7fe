"""Runs a notebook in a kernel of this Python, with nbclient alone: papermill is no part of Colab.

python kernel.py <notebook> <executed copy> <its working folder> <parameters as JSON>
"""

import json
import sys

import nbformat
from nbclient import NotebookClient

path, executed, folder, parameters = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
chosen = "\n".join(f"{name} = {value!r}" for name, value in json.loads(parameters).items())
notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(chosen))
try:
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
finally:
    nbformat.write(notebook, executed)
