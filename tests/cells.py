"""A notebook's cells, run in this process as a kernel would: for tests that look at what they define."""

import linecache
from functools import cache

import matplotlib
import nbformat
from conftest import REPOSITORY

# What the five are run with here
FEW = {"01": {"steps": 12, "batch_size": 16}, "02": {"n_samples": 60}, "03": {"steps": 12, "batch_size": 16},
       "04": {"n_per_class": 8}, "05": {}}
STEMS = ["01_train_cvae", "02_compute_fim", "03_forget", "04_sample", "05_evaluate"]


@cache
def sources(stem):
    """Those of a notebook's cells of code: parameters, set-up, stage, …; stem: as "03_forget" or "studies/5_attacks"."""
    cells = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def code(stem):
    """The same, of the set-up its imports of the project only: what it looks for is already found here."""
    return ["\n".join(line for line in source.splitlines() if line.startswith("from ")) if source.startswith("#@title")
            else source for source in sources(stem)]


def execute(cells, until="", **parameters):
    """What these cells define, run in order, on the CPU unless the parameters say otherwise; those that the first cell does
    not have are left out. The last one that is run is the first that holds the text `until`."""
    matplotlib.use("agg")
    names = {"__name__": "__main__"}
    for source in cells:
        file = f"<cell {hash(source)}>"
        linecache.cache[file] = len(source), None, [f"{line}\n" for line in source.splitlines()], file      # as IPython does
        exec(compile(source, file, "exec"), names)
        if source is cells[0]:
            names |= {name: value for name, value in {"device": "cpu", **parameters}.items() if name in names}
        if until and until in source:
            return names
    return names


def makes(cells):
    """Those of these cells that a notebook's file is made by: without 01's practice by hand."""
    return [source for source in cells if "pupil" not in source]


def run_here(stem, until="", model_cell=None, **parameters):
    """execute() of the cells of a notebook, "03_forget" or "03"; up to the one that saves, of those alone that make its file.

    model_cell: stands in the place of the cell that defines CVAE.
    """
    cells = code(next(one for one in STEMS if one.startswith(stem)))
    cells = [model_cell if model_cell and "class CVAE" in source else source for source in cells]
    return execute(makes(cells) if until == "stage.save(" else cells, until, **parameters)
