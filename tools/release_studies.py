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

from amnesia_studies.experiment import released, released_grey
from amnesia_studies.methods import METHODS
from amnesia_studies.rows import EVERY_METHOD, OTHER_SEEDS, plan
from amnesia_studies.tables import beside_retrain, frame, markdown, relearning_metrics, summary

STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("*.ipynb"))
RELEASED = REPOSITORY / "checkpoints" / "released"


def summary_table(scores, attacks, savings):
    """The table of every method, and both references, beside the original, from the records of three logs."""
    runs = frame(scores, plan(EVERY_METHOD, [[0]], range(3), bounds=True), released_grey)
    attacked = beside_retrain(frame(attacks, plan(EVERY_METHOD, [[0]], range(3), restarts=128), released_grey))
    taught = frame(savings, plan(EVERY_METHOD, [[0]], OTHER_SEEDS), of=relearning_metrics)
    table = summary(runs, {"P − grey": "+.3f", "H / grey": ".2f", "worst kept digit": ".3f", "kept ELBO": ".2f"}).join([
        summary(attacked, {"excess": "+.2f"})["excess"].rename("inversion excess"),
        summary(taught, {"savings, k = 100": ".2f"})["savings, k = 100"].rename("savings")]).fillna("–")
    table["real data"] = [METHODS[EVERY_METHOD[row]["method"]].real_data or "–" for row in table.index]
    note = f"Forgotten: 0; mean ± sd over {table.pop('n').max()} seeds. 1,000 samples per label. –: not measured."
    return f"{markdown(table.rename(columns={'kept ELBO': 'kept ELBO, nats'}))}\n\n{note}"


def fill_page():
    """Writes the table of the released logs into the studies' page."""
    fill(STUDIED, "studies", summary_table(*map(released, ("studies", "attacks", "savings"))))


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
