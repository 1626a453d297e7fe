"""Makes the released runs of the studies: python benchmarks/release_studies.py WORKSPACE

Runs the study notebooks at full size in WORKSPACE, from the released checkpoints (hours on two cores; a run that was
stopped goes on where it was); copies the logs to checkpoints/released; executes the notebooks as committed, in place; and
writes README's tables from the logs.
"""

import os
import shutil
import sys
import tempfile
from operator import truediv
from pathlib import Path

import papermill
from release import REPOSITORY, execute, fill, read

from experiments.bench import RELEASED
from experiments.methods import METHODS
from experiments.sweep import Log
from experiments.tables import FIGURES, RECOVERY, markdown, paired, select, spread

STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))
COMPARED = [[0]]  # the digits of study 3


def summary_table(records, attacks, evaluations):
    """README's table: every method, and both references, beside the original.

    attacks: the records of attacks.jsonl; evaluations: {digit: content of evaluation-<digit>.json}, for what the judge
    says of grey.
    """
    def against_grey(record):
        grey = evaluations[record["settings"]["forget"][0]]["reference"]["grey"]
        return FIGURES["P"](record) - grey["forgotten_probability"], FIGURES["H"](record) / grey["entropy"]

    rows, digits, seeds = [], set(), set()
    for method, (_, data) in METHODS.items():
        runs = [r for r in select(records, method=method, bounds=True, lam=None, gamma=None, importance=None)
                if r["settings"]["forget"] in COMPARED]
        attacked, control = ([r for r in select(attacks, method=name, lam=None, importance=None, posterior=None, reach=None)
                              if r["settings"]["forget"] in COMPARED] for name in (method, "retrain"))
        digits |= {r["settings"]["forget"][0] for r in runs}
        seeds |= {r["settings"]["seed"] for r in runs}
        rows.append([method, *(spread([against_grey(r)[i] for r in runs], 3, sign=not i) for i in (0, 1)),
                     spread([FIGURES["worst kept digit"](r) for r in runs]),
                     spread([FIGURES["kept ELBO"](r) for r in runs], 2),
                     spread(paired(attacked, control, RECOVERY["searches"]), 2, sign=True),
                     spread(paired(attacked, control, RECOVERY["steps, k = 10"], truediv), 2),
                     data or "–", spread([r["result"]["seconds"] for r in runs], 1)])
    header = ["", "P − grey", "H / grey", "worst kept digit", "kept ELBO, nats", "attack excess", "relearning ratio",
              "real data", "seconds"]
    versions = records[0]["versions"]
    note = (f"Forgotten: {', '.join(map(str, sorted(digits)))}; mean ± sd over {len(seeds)} seeds; 1,000 samples a label. "
            f"Seconds on one core, two runs side by side. {versions['hardware']}, torch {versions['torch']}.")
    return f"{markdown(header, rows)}\n\n{note}"


FASHION = ("P", "H", "kept accuracy", "worst kept digit", "Fréchet", "recall", "kept ELBO")


def fashion_table(records):
    """README's table of what forgets T-shirts: the records of study 3 with dataset = "FashionMNIST"."""
    def figures(method):
        runs = select(records, method=method, bounds=True)
        return [spread([FIGURES[name](r) for r in runs], {"kept ELBO": 2, "Fréchet": 1}.get(name, 3)) for name in FASHION]

    rows = [[method, *figures(method)] for method in METHODS]
    return markdown(["", *(name.replace("digit", "class").replace("ELBO", "ELBO, nats") for name in FASHION)], rows)


def released(name):
    """The records of a released log."""
    return list(Log(RELEASED / name).records().values())


def fill_readme():
    """Writes the tables of the released logs into README."""
    grey = {digit: read(f"evaluation-{digit}.json") for digit in range(10)}
    for marker, table in (("studies", summary_table(released("studies.jsonl"), released("attacks.jsonl"), grey)),
                          ("fashion methods", fashion_table(released("FashionMNIST/studies.jsonl")))):
        fill(REPOSITORY / "README.md", marker, table, "release_studies")


if __name__ == "__main__":
    workspace = Path(sys.argv[1]).absolute()
    for path in STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            papermill.execute_notebook(path, Path(folder) / path.name, {"workspace": str(workspace), "full": True},
                                       cwd=path.parent, log_output=True)
    for log in (workspace / "checkpoints").glob("*.jsonl"):
        shutil.copy(log, RELEASED)
        os.chmod(RELEASED / log.name, 0o644)
    for path in STUDIES:
        execute(path, workspace)
    fill_readme()
