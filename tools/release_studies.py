"""Makes the studies' released outputs: python tools/release_studies.py WORKSPACE

Executes the five studies as committed, in place, their own runs in WORKSPACE; keeps the studies' page's pictures, which
their cells drew; and writes that page's table from the released logs. The logs themselves are made by the studies with
full = True, in any workspace, whose checkpoints/*.jsonl are then copied to checkpoints/released. Ends with an error if a
notebook's outputs are not those of its code as it is now.

python tools/release_studies.py page writes the page's table and pictures only.
"""

import base64
import sys
from pathlib import Path

import nbformat
from release import REPOSITORY, STUDIED, check_outputs, execute, fill

from amnesia_studies.methods import METHODS, REAL_DATA
from amnesia_studies.tables import markdown, released, summary

STUDIES = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*_*.ipynb"))
PICTURES = {"distil": ("4_elsewhere", 0), "fooled": ("2_at_what_cost", 0), "controls": ("3_is_it_gone", 0),
            "averages": ("3_is_it_gone", 2)}                # {file: the study that draws it, and which of its pictures}
COLUMNS = {"P − grey": "+.3f", "H / grey": ".2f", "worst kept digit": ".3f", "recall": ".2f", "kept ELBO": ".2f",
           "inversion from 100 images": ".2f", "savings, k = 100": ".2f"}


def summary_table():
    """The table of every method and both references, a 0 forgotten, from the released logs."""
    runs = released().query("original == 'MNIST' and label == '0' and log in ['studies', 'attacks', 'savings']")
    table = summary(runs, COLUMNS)
    table = table.loc[[name for name in METHODS if name in table.index]]
    table["real data"] = [REAL_DATA.get(name, "none") or "–" for name in table.index]
    return markdown(table.rename(columns={"inversion from 100 images": "inversion", "savings, k = 100": "savings"}))


def pictures():
    """{file name: bytes} of the page's pictures, as the studies show them."""
    shown = {path.stem: [base64.b64decode(output["data"]["image/png"])
                         for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])
                         if "image/png" in output.get("data", {})] for path in STUDIES}
    return {f"{name}.png": shown[stem][number] for name, (stem, number) in PICTURES.items()}


def fill_page():
    """Writes the table of the released logs into the studies' page."""
    fill(STUDIED, "studies", summary_table())


if __name__ == "__main__":
    if sys.argv[1:] != ["page"]:
        for path in STUDIES:
            execute(path, Path(sys.argv[1]).absolute())
    folder = REPOSITORY / "figures" / "released" / "studies"
    folder.mkdir(exist_ok=True)
    for name, content in pictures().items():
        (folder / name).write_bytes(content)
    fill_page()
    check_outputs()
