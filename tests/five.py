"""The five notebooks in this process, one after the other, by parameters and one edited cell: no kernel has to start."""

from cells import STEMS, code, execute

FEW = {"01": {"steps": 12, "batch_size": 16}, "02": {"n_samples": 60}, "03": {"steps": 12, "batch_size": 16},
       "04": {"n_per_class": 8}, "05": {}}


def cells_of(number):
    """Those of a notebook's cells of code: parameters, set-up, stage, …"""
    return code(STEMS[int(number) - 1])


def run(number, until="", model_cell=None, **parameters):
    """What a notebook's cells define, with these parameters, of which it takes those that it has.

    until: text of the last cell to run; model_cell: stands in the place of the cell that defines CVAE.
    """
    cells = [model_cell if model_cell and "class CVAE" in source else source for source in cells_of(number)]
    return execute(cells, until, **parameters)


def run_all(numbers=("01", "02", "03", "04", "05"), model_cell=None, **parameters):
    """{number: what it defines} of several notebooks, with few steps where the parameters say nothing else."""
    return {number: run(number, model_cell=model_cell, **{**FEW[number], **parameters.get(number, {}), **{
        key: value for key, value in parameters.items() if key[0] != "0"}}) for number in numbers}
