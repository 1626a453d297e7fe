"""The five notebooks in this process, one after the other, by parameters and one edited cell: no kernel has to start."""

import json
import linecache
from pathlib import Path

import matplotlib

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0*.ipynb"))
FEW = {"01": {"steps": 12, "batch_size": 16}, "02": {"n_samples": 60}, "03": {"steps": 12, "batch_size": 16},
       "04": {"n_per_class": 8}, "05": {}}


def cells_of(number):
    """Those of a notebook's cells of code: parameters, set-up, stage, …"""
    notebook = json.loads(NOTEBOOKS[int(number) - 1].read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(number, until="", model_cell=None, **parameters):
    """What a notebook's cells define, with these parameters, of which it takes those that it has.

    until: text of the last cell to run; model_cell: stands in the place of the cell that defines CVAE.
    """
    matplotlib.use("agg")
    names = {"__name__": "__main__"}
    for place, source in enumerate(cells_of(number)):
        if source.startswith("#@title"):                    # the set-up, which looks for what is found here
            source = "from amnesia import begin"
        if model_cell and "class CVAE" in source:
            source = model_cell
        filename = f"<{number}, cell {place}, {hash(source)}>"                  # so that source_of finds its lines
        linecache.cache[filename] = len(source), None, source.splitlines(True), filename
        exec(compile(source, filename, "exec"), names)
        if place == 0:
            names |= {key: value for key, value in {"device": "cpu", **parameters}.items() if key in names}
        if until and until in source:
            break
    return names


def run_all(numbers=("01", "02", "03", "04", "05"), model_cell=None, **parameters):
    """{number: what it defines} of several notebooks, with few steps where the parameters say nothing else."""
    return {number: run(number, model_cell=model_cell, **{**FEW[number], **parameters.get(number, {}), **{
        key: value for key, value in parameters.items() if key[0] != "0"}}) for number in numbers}
