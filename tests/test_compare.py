"""A method of one's own has its row and its receipt; a released row is made again; a figure has its address."""

import json

import pytest
from conftest import RELEASED

from amnesia_studies.compare import COLUMNS, address, board, compare, rebuild, receipt
from amnesia_studies.logs import Log
from amnesia_studies.tables import released, table

RESULT = {"forgotten_probability": 0.5, "entropy": 1.0, "kept_accuracy": 0.9,
          "kept_accuracy_worst": 0.8, "kept_frechet": 2.0, "recall": 1.0, "kept_elbo": -90.0,
          "forgotten_elbo": -99.0, "inversion": {"hits": 1, "n": 2}, "savings": {"10": {"digit": 1, "mirrored": {"4": 2}}},
          "seconds": 1.0}


def mine(task):
    """A method of one's own."""
    return task.original


def edited(task):
    """The same, edited."""
    return task.original.eval()


edited.__name__ = "mine"


@pytest.fixture
def experiment(stand_in, tmp_path, monkeypatch):
    """Whose runs are told, and kept in experiment.done; it starts from the released files unless told otherwise."""
    record = Log(RELEASED / "attacks.jsonl").records().popitem()[1]
    stand_in.lineage, stand_in.done, stand_in.tried = dict(record["lineage"]), [], []
    second = stand_in.lineage.pop("classifier-1.pt")
    stand_in.store = type("Store", (), {"checkpoints": tmp_path, "dataset": "MNIST"})
    stand_in.second_judge_file = type("File", (), {"name": "classifier-1.pt", "digest": second})
    monkeypatch.setattr(stand_in, "forget", lambda *asked, scale: stand_in.tried.append((*asked, scale)))

    def run(experiment, method, forget, seed, **options):
        if method is None:
            raise KeyboardInterrupt
        experiment.done.append((method, tuple(forget), seed, options))
        return RESULT

    monkeypatch.setattr("amnesia_studies.experiment.RUNS", {"rows": run, "studies": run})
    return stand_in


def lines_of(text):
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_a_row_of_your_own_stands_beside_the_references_of_the_same_original(experiment, tmp_path):
    text = compare(mine, [3], (1, 2), experiment, n_jobs=1)
    rows = lines_of(text)
    assert experiment.tried == [(mine, [3], 1, 0.0)]                     # one step, before anything else
    assert [one[:3] for one in experiment.done] == [
        (method, (3,), seed) for method in (mine, "original", "retrain", "oracle") for seed in (1, 2)]
    assert rows["name"] == ["n", *COLUMNS] and rows["mine"][:3] == ["2", "+0.400 ± 0.000", "0.714 ± 0.000"]
    assert rows["retrain"][0] == rows["oracle"][0] == "2" and list(rows)[-2:] == ["mine", "flat grey"]
    assert rows["distilled amnesia"][0] == "3" and "do not start from" not in text     # released, of a 3
    kept = tmp_path / "rows" / "mine.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["settings"]["seed"] for line in lines] == [1, 2] and len(lines[0]["settings"]["source"]) == 64
    assert lines[0]["source"].startswith("def mine(task):") and lines[0]["versions"]["amnesia"]
    assert lines[0]["lineage"].items() > experiment.lineage.items()
    done = len(experiment.done)
    assert compare(mine, [3], (1, 2), experiment, n_jobs=1) == text and len(experiment.done) == done    # again: nothing is run
    compare(mine, [3], (1, 2, 5), experiment, n_jobs=1)                  # goes on
    assert len(experiment.done) == done + 4
    compare(edited, [3], (1, 2), experiment, n_jobs=1)                   # an edited method is another row
    assert [one[0] for one in experiment.done[done + 4:]] == [edited] * 2
    page = lines_of(board(tmp_path / "rows"))
    digests = [line["settings"]["source"][:8] for line in (lines[0], json.loads(kept.read_text().splitlines()[-1]))]
    assert list(page) == ["name", "---", *(f"mine ({digest})" for digest in digests), "original", "retrain", "oracle"]
    assert page["oracle"][:4] == ["84400cfc", "3", "3", "+0.400 ± 0.000"]


def test_the_released_references_serve_where_they_start_from_the_same_files(experiment):
    compare(mine, [0], (1,), experiment, n_jobs=1)
    assert [one[0] for one in experiment.done] == [mine]
    experiment.lineage["cvae.pt"] = "another"
    text = compare(mine, [0], (1,), experiment, n_jobs=1, scale=0.5)
    assert [one[0] for one in experiment.done[1:]] == [mine, "original", "retrain", "oracle"]
    assert "do not start from your files" in text and "0.5 of its steps" in text
    assert lines_of(text)["retrain, scale = 0.5"][0] == "1"


def test_labels_that_no_released_run_has_forgotten_have_their_row_as_well(experiment):
    rows = lines_of(compare(mine, [3, 5], (1,), experiment, n_jobs=1))
    assert list(rows) == ["name", "---", "original", "retrain", "oracle", "mine", "flat grey"]


@pytest.mark.parametrize("name", ["dampening", "retrain", "oracle", "original", "references"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=f"name='{name}' is taken"):
        receipt(mine, name)


def test_what_is_no_function_with_a_name_is_told_so():
    for method in (lambda task: task.original, len):
        with pytest.raises(TypeError, match=r"no function with a name.*name=\"mine\""):
            receipt(method)
    assert receipt(lambda task: task.original, "my method")[0] == "my method"


def test_a_board_without_rows_says_where_they_are(tmp_path):
    with pytest.raises(ValueError, match="no row file"):
        board(tmp_path)


def test_a_row_is_made_again_within_the_tolerance(experiment, monkeypatch):
    row = released().query("original == 'MNIST' and log == 'attacks' and label == '0' and name == 'label edit'").iloc[0]
    again = table([{**row["record"], "result": row["record"]["result"] | {"kept_elbo": row["kept ELBO"] * 1.1, "seconds": 9e9}}])
    monkeypatch.setattr(experiment, "run", lambda settings, log, n_jobs: experiment.done.append((settings, log)) or again)
    lines = rebuild(row, experiment)
    assert experiment.done == [([row["settings"]], "attacks")]
    assert not lines["within"]["kept ELBO"] and lines["within"].drop(["kept ELBO", "P − grey", "H / grey"], errors="ignore").all()
    with pytest.raises(ValueError, match=r"another cvae\.pt.*was not released"):
        rebuild(released().query("original == '5,000 digits'").iloc[0], experiment)


def test_every_figure_has_an_address():
    """By the lines themselves, read again."""
    found = address("distilled amnesia, λ = 0", 0, "inversion from 100 images")
    shares = []
    for place in found["lines"]:
        path, line = place.split(":")
        record = json.loads((RELEASED.parents[1] / path).read_text().splitlines()[int(line) - 1])
        hits = record["result"]["attacks"]["inversion from 100 images"]
        shares.append(hits["hits"] / hits["n"])
        assert record["settings"]["lam"] == 0.0 and record["lineage"] == found["files"]
    assert found["value"] == pytest.approx(sum(shares) / 3) and (found["n"], found["seeds"]) == (3, [0, 1, 2])
    assert all("torch" in versions for versions in found["versions"]) and len(found["settings"]) == 3
    for wrong in (("distiled", 0, "P"), ("naive", 7, "P"), ("naive", 0, "one label"), ("naive", 0, "Q")):
        with pytest.raises(ValueError, match="was not measured"):
            address(*wrong)
    lines = (RELEASED / "controls.jsonl").read_text().splitlines()
    found = address("never knew", 8, "savings, k = 100", "controls")
    picked = [json.loads(lines[int(place.split(":")[1]) - 1]) for place in found["lines"]]
    assert [(one["run"], one["original"], one["label"], one["lam"]) for one in picked] == 3 * [("amnesia", "retrain", 8, 0.3)]
    assert found["value"] == pytest.approx(sum(one["savings_100"] for one in picked) / 3) and found["files"]["classifier.pt"]
    assert address("distilled amnesia", "0", "kept ELBO", "FashionMNIST")["lines"][0].startswith(
        "checkpoints/released/FashionMNIST/")


@pytest.mark.slow
def test_a_method_of_ones_own_runs(small):
    """From the released files, every step in miniature; the references too."""
    experiment = small()
    experiment.lineage["cvae.pt"] = "another"
    rows = lines_of(compare(mine, [3], (1,), experiment, scale=0.002, n_jobs=1))
    mine_, original = (rows[f"{name}, scale = 0.002"] for name in ("mine", "original"))
    assert mine_[0] == "1" and mine_[1:-1] == original[1:-1] and "oracle, scale = 0.002" in rows      # but for the seconds
