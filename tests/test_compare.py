"""A method of one's own has its row and its receipt; a released row is made again; a figure has its address."""

import json
from types import SimpleNamespace

import pytest
from conftest import RELEASED

from amnesia_studies.compare import REFERENCES, address, board, compare, rebuild
from amnesia_studies.logs import Log
from amnesia_studies.tables import released, table

RESULT = {"forgotten_probability": 0.5, "entropy": 1.0, "kept_accuracy": 0.9,
          "kept_accuracy_worst": 0.8, "kept_frechet": 2.0, "recall": 1.0, "kept_elbo": -90.0,
          "forgotten_elbo": -99.0, "inversion": {"hits": 1, "n": 2}, "savings": {"10": {"digit": 1, "mirrored": {"4": 2}}},
          "seconds": 1.0}


def mine(task):
    return task.original


def edited(task):
    return task.original.eval()


edited.__name__ = "mine"


@pytest.fixture
def experiment(stand_in, tmp_path, monkeypatch):
    """Whose runs are told, and kept in experiment.done; it starts from the released files unless told otherwise."""
    record = Log(RELEASED / "attacks.jsonl").records().popitem()[1]
    stand_in.lineage, stand_in.done, stand_in.tried = dict(record["lineage"]), [], []
    stand_in.second_judge_file = SimpleNamespace(name="classifier-1.pt", digest=stand_in.lineage.pop("classifier-1.pt"))
    stand_in.store = SimpleNamespace(checkpoints=tmp_path, dataset="MNIST")
    monkeypatch.setattr(stand_in, "forget", lambda *asked, scale: stand_in.tried.append((*asked, scale)))
    monkeypatch.setattr("amnesia_studies.experiment.RUNS", {
        "rows": lambda experiment, method, forget, seed, **options: experiment.done.append((method, forget, seed)) or RESULT,
        None: lambda experiment, forget, seed: {"rounds": [RESULT] * len(forget)}})
    return stand_in


def lines_of(text):
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_a_row_of_your_own_stands_beside_the_references_of_the_same_original(experiment, tmp_path):
    text = compare(mine, [3], (1, 2), experiment, n_jobs=1)
    assert experiment.tried == [(mine, [3], 1, 0.0)]                     # one step, before anything else
    assert experiment.done == [(method, [3], seed) for method in (mine, "original", "retrain", "oracle") for seed in (1, 2)]
    rows = lines_of(text)
    assert rows["mine"][:4] == ["2", "+0.400 ± 0.000", "0.714 ± 0.000", "0.9000 ± 0.0000"]
    assert rows["mine"] == rows["original"] and rows["distilled amnesia"][0] == "3"          # the latter released, of a 3
    lines = [json.loads(line) for line in (tmp_path / "rows" / "mine.jsonl").read_text().splitlines()]
    assert [line["settings"]["seed"] for line in lines] == [1, 2] and len(lines[0]["settings"]["source"]) == 64
    assert lines[0]["source"].startswith("def mine(task):") and lines[0]["versions"]["amnesia"]
    assert lines[0]["lineage"] == experiment.lineage | {"classifier-1.pt": experiment.second_judge_file.digest}
    done = len(experiment.done)
    assert compare(mine, [3], (1, 2), experiment, n_jobs=1) == text and len(experiment.done) == done    # again: nothing is run
    compare(mine, [3], (1, 2, 5), experiment, n_jobs=1)                  # goes on
    compare(edited, [3], (1, 2), experiment, n_jobs=1)                   # an edited method is another row
    assert [seed for *_, seed in experiment.done[done:done + 4]] == [5] * 4
    assert [one[0] for one in experiment.done[done + 4:]] == [edited] * 2
    page = lines_of(board(tmp_path / "rows"))
    assert [name[:6] for name in page] == ["mine (", "mine (", "origin", "retrai", "oracle"]
    assert f"mine ({lines[0]['settings']['source'][:8]})" in page
    assert page["oracle"][:4] == [experiment.lineage["cvae.pt"][:8], "3", "3", "+0.400 ± 0.000"]
    with pytest.raises(ValueError, match="no row in"):
        board(tmp_path)


def test_labels_that_are_forgotten_in_turn_have_a_row_a_round(experiment):
    table = experiment.run([{"forget": [4, 2], "seed": 1}], n_jobs=1)
    assert table["label"].tolist() == ["4", "4, 2"] and table["method"].tolist() == ["in turn"] * 2


def test_released_rows_serve_where_they_start_from_the_same_files(experiment):
    assert {"naive", "oracle"} < {*lines_of(compare(mine, [0], (1,), experiment, n_jobs=1))}
    assert experiment.done == [(mine, [0], 1)]
    experiment.lineage["cvae.pt"] = "another"
    rows = lines_of(compare(mine, [0], (1,), experiment, n_jobs=1, scale=0.5))
    assert list(rows) == [f"{name}, scale = 0.5" for name in (*REFERENCES, "mine")]


@pytest.mark.parametrize("name", ["oracle", "references", "<lambda>"])
def test_a_name_that_is_taken_is_refused(experiment, name, monkeypatch):
    monkeypatch.setattr(mine, "__name__", name)
    with pytest.raises(ValueError, match=name):
        compare(mine, [3], (1,), experiment)


def test_a_row_is_made_again_within_the_tolerance(experiment, monkeypatch):
    row = released().query("original == 'MNIST' and log == 'attacks' and label == '0' and name == 'with a margin'").iloc[0]
    result = row["record"]["result"]
    taught = {k: steps | {"digit": steps["digit"] * 1.3} for k, steps in result["savings"].items()}
    again = table([row["record"] | {"result": result | {"kept_elbo": row["kept ELBO"] * 1.1, "seconds": 9e9, "savings": taught}}])
    monkeypatch.setattr(experiment, "run", lambda settings, log, n_jobs: experiment.done.append((settings, log)) or again)
    lines = rebuild(row, experiment)
    assert experiment.done == [([row["settings"]], "attacks")]
    assert lines.index[~lines["within"]].tolist() == ["kept ELBO"] and lines["within"]["savings, k = 10"]
    with pytest.raises(ValueError, match=r"another cvae\.pt"):
        rebuild(released().query("original == '5,000 digits'").iloc[0], experiment)


@pytest.mark.parametrize(("asked", "settings", "figure"), [
    (("distilled amnesia, λ = 0", 0, "inversion from 100 images"), {"method": "distilled amnesia", "forget": [0], "lam": 0.0},
     lambda result: result["attacks"]["inversion from 100 images"]["hits"] / 1000),
    (("distilled amnesia", "0", "kept ELBO", "FashionMNIST"), {"forget": [0]}, lambda result: result["kept_elbo"]),
    (("never knew", 8, "inversion from 100 images", "controls"), {"original": "retrain", "lam": 0.3, "label": 8},
     lambda result: result["inversion"]["hits"] / 1000)])
def test_a_figure_has_an_address(asked, settings, figure):
    """By the lines themselves, read again."""
    found, places = address(*asked), [place.split(":") for place in address(*asked)["lines"]]
    records = [json.loads((RELEASED.parents[1] / path).read_text().splitlines()[int(line) - 1]) for path, line in places]
    assert found["value"] == pytest.approx(sum(figure(record["result"]) for record in records) / 3)
    assert found["settings"] == [record["settings"] for record in records] and (found["n"], found["seeds"]) == (3, [0, 1, 2])
    for record in records:
        assert settings.items() <= record["settings"].items() and record["lineage"] == found["files"]
        assert str(record["versions"]) in found["versions"]


@pytest.mark.parametrize("wrong", [("distiled", 0, "P"), ("naive", 7, "P"), ("naive", 0, "one label"), ("naive", 0, "Q")])
def test_what_was_not_measured_has_none(wrong):
    with pytest.raises(ValueError, match=wrong[2]):
        address(*wrong)


@pytest.mark.slow
def test_a_method_of_ones_own_runs(small):
    """From the released files, every step in miniature; the references too. What forgets nothing is the original."""
    rows = lines_of(compare(mine, [3, 5], (1,), small(), scale=0.002, n_jobs=1))
    own, original, _, _ = (rows[f"{name}, scale = 0.002"] for name in ("mine", *REFERENCES))
    assert own[0] == "1" and own[:-1] == original[:-1]                   # but for the seconds
