"""Makes the released runs of the studies: python tools/release_studies.py WORKSPACE

Runs the study notebooks at full size in WORKSPACE, from the released checkpoints (hours on two cores; a run that was
stopped goes on where it was), study 10 from a model of clothes that notebooks 1 and 2 make there; copies the logs to
checkpoints/released; executes the notebooks as committed, in place; and writes the studies' page's table from the logs.
springs-5000.jsonl is springs.jsonl of a machine without a network, where the five notebooks and study 10, with full = True
and dataset = "MNIST", ran in one workspace. Ends with an error if a notebook's outputs are not those of its code as it is
now.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import papermill
from release import NOTEBOOKS, REPOSITORY, STUDIED, check_outputs, execute, fill, run

from amnesia_studies.methods import METHODS, REAL_DATA
from amnesia_studies.tables import less, markdown, released, summary

STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))
RELEASED = REPOSITORY / "checkpoints" / "released"


def summary_table():
    """The table of every method, and both references, beside the original, from the released logs."""
    zeros = released().query("original == 'MNIST' and label == '0'")
    zeros = zeros[zeros["name"].isin(METHODS)].sort_values("name", key=lambda names: names.map([*METHODS].index), kind="stable")
    inversion, savings = "inversion from 100 images", "savings, k = 100"
    table = summary(zeros, {"P − grey": "+.3f", "H / grey": ".2f", "worst kept digit": ".3f", "kept ELBO": ".2f"}).join([
        summary(less(zeros, "retrain"), {inversion: "+.2f"})[inversion].rename("inversion excess"),
        summary(zeros, {savings: ".2f"})[savings].rename("savings")]).fillna("–")
    table["real data"] = [REAL_DATA.get(row, "none") or "–" for row in table.index]
    n = table.pop("n")
    note = f"Forgotten: 0; mean ± sd over {n.min()} to {n.max()} seeds. 1,000 samples per label. –: not measured."
    return f"{markdown(table.rename(columns={'kept ELBO': 'kept ELBO, nats'}))}\n\n{note}"


def fill_page():
    """Writes the table of the released logs into the studies' page."""
    fill(STUDIED, "studies", summary_table())


if __name__ == "__main__":
    workspace = Path(sys.argv[1]).absolute()
    workspace.mkdir(parents=True, exist_ok=True)
    run(workspace, NOTEBOOKS[:2], dataset="FashionMNIST")
    for path in STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            papermill.execute_notebook(path, Path(folder) / path.name, {"workspace": str(workspace), "full": True},
                                       cwd=path.parent, log_output=True)
    for log in (workspace / "checkpoints").rglob("*.jsonl"):
        copy = RELEASED / log.relative_to(workspace / "checkpoints")
        shutil.copy(log, copy)
        os.chmod(copy, 0o644)
    for path in STUDIES:
        execute(path, workspace)
    fill_page()
    check_outputs()
