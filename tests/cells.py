"""A notebook's cells, run in this process: for tests that look at what its cells define."""

from functools import cache

import nbformat
from conftest import REPOSITORY

STEMS = [path.stem for path in sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))]


@cache
def code(stem):
    """The sources of a notebook's code cells but the setup, the parameters first; stem: as "03_forget" or "studies/7_…"."""
    cells = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code" and not cell.source.startswith("#@title")]


def run_here(stem, until="", **parameters):
    """What a notebook's cells define, run in order with these parameters (those of them that it has), on the CPU unless a
    device is among them; the last one that is run is the first that has the text `until` in it, if one has."""
    names = {}
    for number, source in enumerate(code(stem)):
        exec(compile(source, stem, "exec"), names)
        if number == 0:
            names |= {name: value for name, value in {"device": "cpu", **parameters}.items() if name in names}
        if until and until in source:
            break
    return names
