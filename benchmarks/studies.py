"""Makes the released runs of the studies: python benchmarks/studies.py WORKSPACE

Runs the four study notebooks at full size in WORKSPACE, from the released checkpoints (hours on two cores; a run that was
stopped goes on where it was); copies the log to checkpoints/released; executes the notebooks as committed, in place; and
writes README's table from the log.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import papermill
from release import REPOSITORY, execute, fill, read

sys.path.insert(0, str(REPOSITORY / "notebooks"))

from amnesia.studies import FIGURES, METHODS, RELEASED
from amnesia.sweep import Log
from amnesia.tables import markdown, select, spread

STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))
COMPARED = [[0]]  # the digits of study 3


def summary_table(records, evaluations):
    """README's table: every method, and both references, beside the original.

    evaluations: {digit: content of evaluation-<digit>.json}, for what the judge says of grey.
    """
    def against_grey(record):
        grey = evaluations[record["settings"]["forget"][0]]["reference"]["grey"]
        return FIGURES["P"](record) - grey["forgotten_probability"], FIGURES["H"](record) / grey["entropy"]

    rows, digits, seeds = [], set(), set()
    for method, (_, data) in METHODS.items():
        runs = [r for r in select(records, method=method, bounds=True, lam=None, gamma=None, importance=None)
                if r["settings"]["forget"] in COMPARED]
        digits |= {r["settings"]["forget"][0] for r in runs}
        seeds |= {r["settings"]["seed"] for r in runs}
        rows.append([method, *(spread([against_grey(r)[i] for r in runs], 3, sign=not i) for i in (0, 1)),
                     spread([FIGURES["worst kept digit"](r) for r in runs]),
                     spread([FIGURES["kept ELBO"](r) for r in runs], 2),
                     data or "–", spread([r["result"]["seconds"] for r in runs], 1)])
    header = ["", "P − grey", "H / grey", "worst kept digit", "kept ELBO, nats", "real data", "seconds"]
    versions = records[0]["versions"]
    note = (f"Forgotten: {', '.join(map(str, sorted(digits)))}; mean ± sd over {len(seeds)} seeds; 1,000 samples a label. "
            f"Seconds on one core, two runs side by side. {versions['hardware']}, torch {versions['torch']}.")
    return f"{markdown(header, rows)}\n\n{note}"





def fill_readme():
    """Writes the table of the released log into README."""
    table = summary_table(list(Log(RELEASED).records().values()), {d: read(f"evaluation-{d}.json") for d in range(10)})
    fill(REPOSITORY / "README.md", "studies", table, "studies")


if __name__ == "__main__":
    workspace = Path(sys.argv[1]).absolute()
    for path in STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            papermill.execute_notebook(path, Path(folder) / path.name, {"workspace": str(workspace), "full": True},
                                       cwd=path.parent, log_output=True)
    shutil.copy(workspace / "checkpoints" / RELEASED.name, RELEASED)
    os.chmod(RELEASED, 0o644)
    for path in STUDIES:
        execute(path, workspace)
    fill_readme()
