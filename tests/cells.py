"""A notebook's cells, run in this process: for tests that look at what they define, and need no kernel."""

from functools import cache

import matplotlib
import nbformat
from conftest import REPOSITORY

STEMS = [path.stem for path in sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))]


@cache
def sources(stem):
    """Those of a notebook's cells of code: parameters, setup, stage, …; stem: as "03_forget" or "studies/5_attacks"."""
    cells = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def code(stem):
    """The same without the setup, which looks for what is already found here."""
    return [source for source in sources(stem) if not source.startswith("#@title")]


def execute(cells, until="", **parameters):
    """What these cells define, run in order, on the CPU unless the parameters say otherwise; those that the first cell does
    not have are left out. The last one that is run is the first that holds the text `until`."""
    matplotlib.use("agg")
    names = {}
    for number, source in enumerate(cells):
        exec(compile(source, "<cell>", "exec"), names)
        if number == 0:
            names |= {name: value for name, value in {"device": "cpu", **parameters}.items() if name in names}
        if until and until in source:
            break
    return names


def run_here(stem, until="", **parameters):
    """execute() of a notebook's cells."""
    return execute(code(stem), until, **parameters)
