"""Runs a notebook in a kernel of this Python, with nbclient alone: papermill is no part of Colab.

python kernel.py <notebook> <executed copy> <its working folder> <parameters as JSON>
"""

import json
import sys

import nbformat
from nbclient import NotebookClient

path, executed, folder, parameters = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
chosen = "".join(f"\n{name} = {value!r}" for name, value in json.loads(parameters).items())
notebook.cells[1].source += chosen                          # the cell of parameters
try:
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
finally:
    nbformat.write(notebook, executed)
