"""Makes the released run: python tools/release.py

Executes the five notebooks as committed, in place: 01 in a workspace of its own, which trains a model for its pictures; 02 to
05 on the released cvae.pt and fim-cvae.pt, to which all logs of the studies belong. Keeps their figures, the amnesiac model,
its samples and its evaluation in released/; forgets each other digit as well, of which it keeps the evaluation; writes the
pages' tables from these files, play.html and the drawing. No judge is retrained.

python tools/release.py pages writes the pages only: the tables, play.html around the models that it has, and, once
pyproject.toml says where the repository is, Colab's and Kaggle's badges and the notebooks' REPO_URL.

Each way ends with an error if a notebook's outputs are not those of its code as it is now.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import drawing
import nbformat
import papermill
import play
from nbclient import NotebookClient
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.extend(str(REPOSITORY / "notebooks" / folder) for folder in ("", "studies"))


NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))
RELEASED = REPOSITORY / "checkpoints" / "released"
FRONT, HOW_TO, STUDIED = (REPOSITORY / folder / "README.md" for folder in ("", "notebooks", "notebooks/studies"))


def code_digest(path):
    """SHA-256 of what makes a notebook's outputs: its cells of code, with any REPO_URL, and the sources of the helper; for a
    study, those of the studies' package too. An executed notebook records it."""
    notebook = nbformat.reads(addressed(path, path.read_text(), ""), as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    packages = [path.parent / "amnesia"]
    if path.parent.name == "studies":
        packages = [path.parents[1] / "amnesia", path.parent / "amnesia_studies"]
    sources = [file.read_text() for package in packages for file in sorted(package.rglob("*.py"))]
    return hashlib.sha256("\0".join([*cells, *sources]).encode()).hexdigest()


def check_outputs():
    """Ends with an error that names the notebooks whose outputs are not those of their code as it is now."""
    if old := [path.stem for path in sorted((REPOSITORY / "notebooks").rglob("[0-9]*_*.ipynb"))
               if nbformat.read(path, as_version=4).metadata.get("code") != code_digest(path)]:
        sys.exit(f"Older than their code are the outputs of {', '.join(old)}. tools/release.py runs the five anew, "
                 "tools/release_studies.py the studies.")


def execute(path, workspace):
    """Runs a notebook in place and returns the seconds it took, its kernel's start included."""
    os.environ["AMNESIA_WORKSPACE"] = str(workspace)
    notebook, digest, start = nbformat.read(path, as_version=4), code_digest(path), time.perf_counter()
    NotebookClient(notebook, resources={"metadata": {"path": path.parent}}).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps, which would make every run a change
        CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)  # progress as it ends up on a screen, in one line
    notebook.metadata["code"] = digest
    written = nbformat.writes(notebook)
    for folder in (workspace, REPOSITORY):                  # where this machine keeps things is nobody's affair
        written = written.replace(f"{folder}/", "")
    path.write_text(written + "\n")
    print(f"{path.name}: {seconds:.0f} s")
    return seconds


# The front page's rows
FRONT_ROWS = "forgotten_probability", "entropy", "forgotten_share", "forgotten_contrast", "kept_accuracy", "kept_elbo"


def results_table(evaluation, only=None):
    """The table of results, in markdown, from the content of evaluation-<digits>.json: all rows, or `only` these."""
    original, amnesiac, reference = (evaluation[key] for key in ("original", "amnesiac", "reference"))

    def metric(block, key, digits):
        low, high = block["interval95"][key]
        return f"{block[key]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    grey, real = reference["grey"], reference["real"]
    p_grey, h_grey = f"{grey['forgotten_probability']:.3f} on grey", f"{grey['entropy']:.3f} on grey"
    floor = f"{reference['kept_frechet_floor']:.2f} real against real"
    rows = [("P: how sure the judge is of the forgotten digit", "forgotten_probability", 3, p_grey),
            ("H: how unsure the judge is, nats", "entropy", 3, h_grey),
            ("share of its samples judged as it", "forgotten_share", 3, f"{grey['forgotten_share']:.3f} on grey"),
            ("their contrast (grey levels of 255)", "forgotten_contrast", 1,
             f"{grey['forgotten_contrast']:.1f} of grey, {real['forgotten_contrast']:.1f} of real ones"),
            ("kept digits judged as asked", "kept_accuracy", 4, f"{real['kept_accuracy']:.4f} on real digits"),
            ("the worst kept digit", "kept_accuracy_worst", 3, ""),
            ("Fréchet distance of kept digits", "kept_frechet", 2, floor),
            ("ELBO of real kept digits (nats)", "kept_elbo", 2, ""),
            ("ELBO of real forgotten digits (nats)", "forgotten_elbo", 1, "")]
    table = ["| figure | before | after | reference |", "|---|---|---|---|"]
    for title, key, digits, aim in rows:
        if not only or key in only:
            table.append(f"| {title} | {metric(original, key, digits)} | {metric(amnesiac, key, digits)} | {aim} |")
    versions, change = evaluation["versions"], evaluation["change"]
    low, high = change["interval95"]["kept_elbo"]
    note = (f"Change of the kept ELBO, image by image: {change['kept_elbo']:.2f} ({low:.2f} to {high:.2f}) nats. "
            f"Forgotten: {evaluation['settings']['forget']}, seed {evaluation['settings']['seed']}; n = "
            f"{original['n_per_class']:,} samples per label; in brackets 95 % intervals over samples or test images. "
            f"{versions['hardware']}, torch {versions['torch']}.")
    return "\n".join([*table, "", note])


def times_table(times):
    """The notebooks' page: seconds per notebook, in markdown, from the content of times.json."""
    head = "| " + " | ".join([*times["seconds"], "all five"]) + " |"
    total = sum(times["seconds"].values())
    row = "| " + " | ".join(f"{seconds:.0f} s" for seconds in [*times["seconds"].values(), total]) + " |"
    note = f"{times['versions']['hardware']}, torch {times['versions']['torch']}."
    return "\n".join([head, "|" + "---|" * (len(times["seconds"]) + 1), row, "", note])


def another_digit(times):
    """The notebooks' page: a sentence on forgetting another digit, from the content of times.json."""
    seconds = times["seconds"]
    return (f"One changed parameter, `forget`, and under a minute: notebook 3 took {seconds['03_forget']:.0f} s in the "
            f"released run, sampling {seconds['04_sample']:.0f} s and evaluating {seconds['05_evaluate']:.0f} s.")


def read(name):
    """The content of a JSON file of the released run."""
    return json.loads((RELEASED / name).read_text())


def fill(page, marker, table):
    """Writes a table between the markers of a markdown page."""
    begin, end = re.search(rf"<!-- {marker}: .* -->", page.read_text())[0], f"<!-- end of {marker} -->"
    head, rest = page.read_text().split(begin)
    page.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}")


# Where a notebook on GitHub opens with one click, and the badge for it
HOSTS = {"Colab": ("https://colab.research.google.com/github/", "https://colab.research.google.com/assets/colab-badge.svg"),
         "Kaggle": ("https://kaggle.com/kernels/welcome?src=https://github.com/",
                    "https://kaggle.com/static/images/open-in-kaggle.svg")}


def badges(path, repository):
    """The badges that open this notebook of a repository "owner/name" on GitHub in Colab and on Kaggle; nothing while it
    is ""."""
    if not repository:
        return ""
    place = f"{repository}/blob/main/{path.relative_to(REPOSITORY).as_posix()}"
    return " ".join(f'<a href="{host}{place}"><img src="{badge}" alt="{path.stem} in {name}"></a>'
                    for name, (host, badge) in HOSTS.items())


def addressed(path, notebook, repository):
    """The text `notebook` of the file `path`, with the repository's address as its REPO_URL, from which a hosted machine
    fetches the rest, and badges under its title."""
    address = f"https://github.com/{repository}" if repository else ""
    text = re.sub(r'REPO_URL = \\"[^"]*\\"', f'REPO_URL = \\\\"{address}\\\\"', notebook)
    escaped = json.dumps(badges(path, repository))[1:-1]
    return re.sub(r"<!-- badges -->.*(?=\\n\",)", lambda _: f"<!-- badges -->{escaped}", text)


def fill_pages():
    """Writes the released run's tables into the pages, and what depends on the repository's address."""
    repository = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["amnesia"]["repository"]
    fill(FRONT, "badges", "\n".join(badges(path, repository) for path in NOTEBOOKS).strip())
    for path in (REPOSITORY / "notebooks").rglob("*.ipynb"):
        path.write_text(addressed(path, path.read_text(), repository))
    play.write()
    times = read("times.json")
    fill(FRONT, "results", results_table(read("evaluation-0.json"), FRONT_ROWS))
    fill(HOW_TO, "times", times_table(times))
    fill(HOW_TO, "another digit", another_digit(times))


def release():
    """The released run of MNIST. Another kind of CPU would not train to the same bits, and the studies' logs belong to the
    released model: so that stays, and only what is made from it is made anew."""
    alone, workspace = (Path(tempfile.mkdtemp()) for _ in range(2))
    (workspace / "checkpoints").mkdir()
    shutil.copy(RELEASED / "fim-cvae.pt", workspace / "checkpoints")
    seconds = {path.stem: execute(path, workspace if number else alone) for number, path in enumerate(NOTEBOOKS)}
    for file in [*(workspace / "checkpoints").glob("[ase]*-0.*"), *(workspace / "figures").glob("[!.]*"),
                 alone / "figures" / "cvae_training.gif"]:
        shutil.copy(file, REPOSITORY / file.parent.name / "released" / file.name)
    times = {"seconds": seconds, "versions": read("evaluation-0.json")["versions"]}
    (RELEASED / "times.json").write_text(json.dumps(times, indent=1))
    for digit in range(1, 10):
        run(workspace, NOTEBOOKS[2:], forget=[digit])
        shutil.copy(workspace / "checkpoints" / f"evaluation-{digit}.json", RELEASED)
    play.write(run=True)
    drawing.draw()


def run(workspace, notebooks, **parameters):
    """Runs notebooks with these parameters, and keeps their executed copies in the workspace only."""
    for path in notebooks:
        papermill.execute_notebook(path, workspace / path.name, {"workspace": str(workspace), **parameters}, cwd=path.parent)


if __name__ == "__main__":
    if sys.argv[1:] != ["pages"]:
        release()
    fill_pages()
    check_outputs()
