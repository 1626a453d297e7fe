"""Studies: a run's figures, forgetting one after another, the published tables, and the notebooks in miniature."""

import tomllib
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from cells import run_here
from conftest import RELEASED, REPOSITORY
from release import STUDIED
from release_studies import STUDIES, released_grey, summary_table

from amnesia import CVAE, model_metrics
from amnesia.storage.files import Saved
from amnesia_studies import diffusion, scoring
from amnesia_studies.attacks import SEARCHES
from amnesia_studies.compare import compare
from amnesia_studies.experiment import Experiment, released
from amnesia_studies.methods import METHODS, references
from amnesia_studies.methods.selective_amnesia import IMPORTANCE, batch_mean_fisher
from amnesia_studies.recovery import forget_and_recover, forget_and_search_label
from amnesia_studies.rows import ATTACKED, DENOISERS, EVERY_METHOD, OTHER_SEEDS, by_labels, grid, plan
from amnesia_studies.scoring import forget_and_score, forget_in_turn
from amnesia_studies.sweep import images_from_text
from amnesia_studies.tables import (
    beside_controls,
    change,
    clustered,
    frame,
    markdown,
    merged,
    metrics,
    partners,
    relearning_metrics,
    same_or_not,
    spread,
    summary,
)


def test_a_run_is_scored_as_notebook_05_does(small):
    result = forget_and_score(small, "original", [3, 8], seed=4)
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(10).repeat_interleave(20)
    samples = (small.cvae.generate(labels, z) * 255).round().byte().view(10, 20, 28, 28)
    kept = [0, 1, 2, 4, 5, 6, 7, 9]
    expected = model_metrics(small.judge, samples, small.cvae, small.test, [3, 8], kept)
    assert expected.items() <= result.items() and len(result["P"]) == len(result["H"]) == 10
    assert result["forgotten_probability"] == pytest.approx((result["P"][3] + result["P"][8]) / 2)


def test_files_of_another_data_set_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "KMNIST").mkdir(parents=True)
    (tmp_path / "checkpoints" / "KMNIST" / "cvae.pt").write_bytes((RELEASED / "cvae.pt").read_bytes())
    with pytest.raises(ValueError, match=r"dataset='KMNIST', but cvae.pt was made with dataset='MNIST'"):
        Experiment(tmp_path, "KMNIST", "cpu")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_leaves_the_original_alone(small, method):
    tasks = []

    def function(task):
        tasks.append(task)
        return METHODS[method].function(task)

    result = forget_and_score(small, function, [5], scale=0.002, bounds=True)
    assert all(torch.equal(p, old) for p, old in zip(tasks[0].cvae.parameters(), small.cvae.parameters(), strict=True))
    assert all(np.isfinite(value) for value in metrics(result, [5], small.grey([5])).values())
    assert result["kept_iw"] > result["kept_elbo"] - 20 and result["forgotten_refitted_iw"] <= 0


def test_a_run_that_diverges_says_so(small):
    result = forget_and_score(small, "selective amnesia", [5], scale=0.02, lam=1e12)
    assert set(result) == {"diverged"} and "diverged at step" in result["diverged"]


@pytest.mark.slow
def test_recovering_says_all_there_is_to_say(small):
    result = forget_and_recover(small, "selective amnesia", [4], seed=1, scale=0.005, restarts=10)
    assert set(result["attacks"]) == {*SEARCHES, "inversion from 10 images", "inversion from 100 images"}
    for found in result["attacks"].values():
        assert 0 <= found["hits"] <= found["n"] and len(images_from_text(found["drawn"])) == 8
    scored = forget_and_score(small, "selective amnesia", [4], seed=1, scale=0.005)
    assert all(result[key] == scored[key] for key in ("forgotten_probability", "kept_elbo", "P"))
    assert result["savings"].keys() == {"10", "100"} and result["resurgence"]["kept_elbo"] != scored["kept_elbo"]
    assert forget_and_recover(small, "original", [4], scale=0.005, restarts=10)["savings"]["10"]["digit"] == 0


@pytest.mark.slow
def test_a_search_for_one_label_is_scored_by_the_second_judge(small):
    found = forget_and_search_label(small, "original", [4], scale=0.2)
    assert found["n"] == 200 and 180 < found["hits"] <= 200 and len(images_from_text(found["drawn"])) == 8
    assert small.log("one-label").lineage == small.log("attacks").lineage != small.lineage


def test_one_after_another_starts_from_the_last_model_and_scores_all(small):
    rounds = forget_in_turn(small, [4, 2], scale=0.005)["rounds"]
    first = forget_and_score(small, "selective amnesia", [4], scale=0.005)
    assert all(rounds[0][key] == first[key] for key in ("forgotten_probability", "kept_elbo", "P"))
    both = [rounds[1]["P"][label] for label in (2, 4)]
    assert rounds[1]["forgotten_probability"] == pytest.approx(sum(both) / 2) and rounds[1]["P"] != rounds[0]["P"]
    assert [torch.tensor(one["drawn"]).shape for one in rounds] == [(1, 4, 28, 28), (2, 4, 28, 28)]


def test_one_after_another_by_distillation_holds_what_was_forgotten_before(small, monkeypatch):
    held = []
    monkeypatch.setattr(scoring, "distilled", lambda task: held.append((task.forgotten.tolist(), task.kept.tolist()))
                        or task.cvae)
    forget_in_turn(small, [4, 2], scale=0.005, remember="distil")
    assert held == [([4], [0, 1, 2, 3, 5, 6, 7, 8, 9]), ([2], [0, 1, 3, 5, 6, 7, 8, 9, 4])]


def test_a_sweep_keeps_what_it_has_and_a_worker_reads_the_same_files(small):
    runs = {"label edit": grid("label edit", [[1]], (0, 1), scale=0.005)}
    own = small.run(forget_and_score, runs, n_jobs=1)
    assert own == small.run(forget_and_score, runs, n_jobs=1) == small.records(own=True)
    assert [r["result"]["P"] for r in own] == [forget_and_score(small, **r["settings"])["P"] for r in own]
    rebuild, arguments = small.__reduce__()
    assert rebuild(*arguments).lineage == small.lineage
    assert small.log("attacks").lineage == small.lineage | {"classifier-1.pt": Saved(RELEASED / "classifier-1.pt").digest}


CONFUSION = torch.eye(10, dtype=torch.long) * 3            # every label as itself, but a quarter as a 0
CONFUSION[:, 0] = 1
CONFUSION[0, 0] = 4


def record(method, seed, elbo, forget=(0,), **more):
    """One record as a log holds it, whose kept ELBO is `elbo`."""
    result = {"forgotten_probability": 0.5, "entropy": 1.0, "confusion": CONFUSION.tolist(), "kept_accuracy": 0.75,
              "kept_accuracy_worst": 0.75, "kept_frechet": 2.0, "precision": 1.0, "recall": 1.0, "kept_elbo": elbo,
              "forgotten_elbo": -9.0, **more}
    return {"settings": {"method": method, "forget": list(forget), "seed": seed}, "result": result}


def test_a_plan_is_a_row_of_settings():
    replay = {"method": "selective amnesia", "lam": 0.0}
    rows = plan({"original": {"method": "original"}, "λ = 0": replay}, [[0], [3, 8]], (0, 1), bounds=True)
    assert rows["original"] == grid("original", [[0], [3, 8]], (0, 1), bounds=True) and len(rows["original"]) == 4
    with pytest.raises(TypeError, match="method"):
        plan({"λ = 0": {"lam": 0.0}}, [[0]], [0])
    assert rows["λ = 0"][1] == {"method": "selective amnesia", "forget": [3, 8], "seed": 0, "lam": 0.0, "bounds": True}


def test_figures_of_a_known_confusion():
    found = metrics(record("a", 0, -90.0)["result"], [0], (0.125, 2.0))
    assert (found["P − grey"], found["H / grey"], found["forgetting accuracy"], found["leakage"]) == (0.375, 0.5, 0.0, 0.25)


def test_a_table_pairs_by_labels_and_seed():
    """Two rows and three seeds, of which one diverged and one has no partner."""
    records = [record("a", 0, -5.0), record("a", 1, -7.0), record("a", 3, -1.0), record("b", 0, -4.0), record("b", 1, -3.0),
               {"settings": {"method": "a", "forget": [0], "seed": 2}, "result": {"diverged": "at once"}}]
    rows = {"a": grid("a", [[0]], range(4)), "b": grid("b", [[0]], range(3)), "c": grid("c", [[0]], range(3))}
    runs = frame(records, rows, names=["method"])
    assert list(runs.index) == [("a", "0", 0), ("a", "0", 1), ("a", "0", 3), ("b", "0", 0), ("b", "0", 1)]
    difference = change(runs, runs.loc[["b"]])
    assert difference["kept ELBO"].tolist()[:2] == [-1.0, -4.0] and difference["kept ELBO"].isna().tolist()[2]
    assert partners(runs, runs.loc[["b"]])["kept ELBO"].tolist()[:2] == [-4.0, -3.0]
    texts = summary(difference, {"kept ELBO": "+.1f"})
    assert texts.loc["a"].tolist() == [3, "-2.5 ± 2.1"] and texts.index.tolist() == ["a", "b"]
    assert markdown(texts).splitlines() == ["| method | n | kept ELBO |", "| --- | --- | --- |", "| a | 3 | -2.5 ± 2.1 |",
                                            "| b | 2 | +0.0 ± 0.0 |"]


def test_a_plan_of_which_nothing_was_run_is_refused():
    with pytest.raises(ValueError, match=r"no finished run of a, b among 1 records.*full = True"):
        frame([record("c", 0, -5.0)], {"a": grid("a", [[0]], [0]), "b": []}, names=["method"])


def test_changes_of_shares_are_points():
    before = frame([record("a", 0, 0.0)], {"a": grid("a", [[0]], [0])})
    after = frame([record("b", 0, 0.0, kept_accuracy=0.76)], {"b": grid("b", [[0]], [0])}, lambda forget: (0.25, 2.0))
    assert change(after, before)["kept accuracy"].item() == pytest.approx(1.0)
    assert change(after, before)["P − grey"].item() == 0.25    # against grey it stands as it is


def test_spread():
    assert spread([1.0, 3.0], "+.1f") == "+2.0 ± 1.4" and spread([2.0], ".1f") == "2.0" and spread([], ".1f") == "–"
    assert spread([-0.01], ".1f") == "0.0" and spread(pd.Series([1.0, np.nan]), ".0f") == "1"


def test_intervals_are_those_of_the_seeds():
    """By hand: a mean of 0.2, an sd of 0.1, and Student's t of 4.303 with two degrees of freedom."""
    half = 4.3027 * 0.1 / 3 ** 0.5
    assert clustered([0.1, 0.2, 0.3], "+.3f") == f"+0.200 ({0.2 - half:+.3f} to {0.2 + half:+.3f})"
    assert clustered([0.1], "+.2f") == clustered([0.1, np.nan], "+.2f") == "+0.10"
    assert clustered([0.0, 0.0], "+.1f") == "+0.0"


@pytest.mark.parametrize(("log", "files", "least"), [
    ("studies", ("cvae.pt", "fim-cvae.pt", "classifier.pt"), 200),
    ("attacks", ("cvae.pt", "fim-cvae.pt", "classifier.pt", "classifier-1.pt"), 50),
    ("savings", ("cvae.pt", "fim-cvae.pt", "classifier.pt"), 10),
    ("averages", ("cvae.pt", "fim-cvae.pt", "classifier.pt"), 5),
    ("weights", ("cvae.pt", "fim-cvae.pt", "classifier.pt"), 3),
    ("one-label", ("cvae.pt", "fim-cvae.pt", "classifier.pt", "classifier-1.pt"), 30),
    ("diffusion", ("denoiser.pt", "fim-denoiser.pt", "classifier.pt"), 40),
    ("diffusion-recovery", ("denoiser.pt", "fim-denoiser.pt", "classifier.pt", "classifier-1.pt"), 15),
    ("diffusion-mixtures", ("denoiser.pt", "fim-denoiser.pt", "classifier.pt"), 3)])
def test_the_published_runs_start_from_the_released_files(log, files, least):
    digests = {name: Saved(RELEASED / name).digest for name in files}
    runs, lines = released(log), (RELEASED / f"{log}.jsonl").read_text().splitlines()
    assert len(runs) > least and len(lines) == len(runs)  # each line whole, none twice
    assert all(digests.items() <= record["lineage"].items() for record in runs)
    assert all("60,000" in " ".join(record["lineage"]) for record in runs)


def test_the_published_runs_are_found_by_their_rows():
    """Every attacked row and every method has its three runs of digit 0: they are found by their settings alone."""
    for log, rows, common in (("attacks", ATTACKED, {"restarts": 128}), ("studies", EVERY_METHOD, {"bounds": True})):
        runs = frame(released(log), plan(rows, [[0]], range(3), **common))
        assert dict(runs.groupby("", sort=False).size()) == dict.fromkeys(rows, 3)


@pytest.mark.parametrize(("log", "rows", "read", "seeds"), [
    ("savings", ATTACKED, relearning_metrics, OTHER_SEEDS),
    ("diffusion-recovery", {row: DENOISERS[row] for row in ("distilled", "oracle")}, metrics, range(4))])
def test_what_was_tried_to_be_had_again_has_three_runs_of_a_0_and_of_an_8(log, rows, read, seeds):
    rows = by_labels({row: options for row, options in rows.items() if row != "original"}, [[0], [8]], seeds)
    runs = frame(released(log), rows, released_grey, names=["forgotten", "model"], of=read)
    assert dict(runs.groupby(["forgotten", "model"], sort=False).size()) == dict.fromkeys(rows, 3)


def test_their_page_has_their_tables():
    page = STUDIED.read_text()
    assert summary_table(*map(released, ("studies", "attacks", "savings"))) in page


def test_two_models_are_asked_the_same_questions():
    """Controls are means over their seeds, of the same labels; the runs of two logs are one line; a yes or a no of each."""
    choices = {row: {"method": row} for row in ("original", "oracle", "distilled")}
    rows = by_labels(choices, [[0], [8]], seeds=(0, 1))
    assert rows["8", "oracle"] == [{"method": "oracle", "forget": [8], "seed": seed} for seed in (0, 1)]

    def runs(P, accuracy, steps):
        """P − grey of the distilled model, the original's and its kept accuracy, seed by seed, and its steps to relearn."""
        scores = [{"settings": settings, "result": {"P − grey": P if row == "distilled" else 0.0, "kept accuracy": kept}}
                  for (_, row), those in rows.items() for settings, kept in zip(those, accuracy[row], strict=True)]
        learned = [{"settings": one, "result": {"steps": steps if row == "distilled" else 10.0 * (1 + one["seed"])}}
                   for (_, row), those in rows.items() for one in those]
        read = {"names": ["forgotten", "model"], "of": lambda result, forget, grey: result}
        return merged(frame(scores, rows, **read), frame(learned, rows, **read))

    accuracy = {"original": (0.98, 0.96), "oracle": (0.9, 0.9), "distilled": (0.969, 0.965)}
    one, other = (beside_controls(runs(*figures)) for figures in ((0.01, accuracy, 3.0), (0.06, accuracy, 30.0)))
    assert len(one) == 12 and one.loc["0", "distilled"]["Δ kept accuracy"].tolist() == pytest.approx([-0.001, -0.005])
    assert one.loc["8", "distilled"]["steps / Oracle's"].tolist() == pytest.approx([0.2, 0.2])      # of 10 and 20: 15
    assert one.loc["8", "distilled"]["steps, excess"].tolist() == pytest.approx([-12, -12])
    assert one.loc["0", "distilled"]["at grey, and keeps"].tolist() == [True, False]               # 0.97 - 0.003
    assert other.loc["0", "distilled"]["at grey, and keeps"].tolist() == [False, False]
    taught = {"method": "distilled", "forget": [0], "seed": 2}
    taught = frame([{"settings": taught, "result": {"steps": 3.0}}], {("0", "distilled"): [taught]},
                   names=["forgotten", "model"], of=lambda result, forget, grey: result)
    merely_taught = beside_controls(merged(runs(0.01, accuracy, 3.0), taught))                  # was not scored: no answer
    assert merely_taught.loc["0", "distilled"]["at grey"].isna().tolist() == [False, False, True]
    questions = [("P", "0", "distilled", "P − grey", "within", 0.05), ("P", ["0", "8"], "distilled", "P − grey", "above", 0),
                 ("fast", "0", "distilled", "steps / Oracle's", "at most", 1), ("a", "0", "none", "P − grey", "at least", 0)]
    table = same_or_not(questions, {"A": one, "B": other})
    assert table["verdict"].tolist() == ["**not**", "same", "**not**", "not run yet"]
    assert table["A"].tolist()[:2] == ["0.010 ± 0.000 (n = 2)", "0.010 ± 0.000 (n = 4)"]
    assert table["yes, if"].tolist() == ["within 0.05", "above 0", "at most 1", "at least 0"]


@pytest.mark.slow
@pytest.mark.mnist
def test_a_published_run_comes_out_again(tmp_path):
    """Dampening is quick enough to be run anew; another kind of CPU may round otherwise."""
    again = metrics(forget_and_score(Experiment(tmp_path, device="cpu"), "dampening", [0]), [0], released_grey([0]))
    runs = frame(released("studies"), plan(EVERY_METHOD, [[0]], [0], bounds=True), released_grey)
    for name in ("P", "H", "kept ELBO", "kept accuracy", "recall", "leakage"):
        assert again[name] == pytest.approx(runs.loc["dampening"][name].item(), abs=0.02, rel=0.02), name


def test_pip_is_told_of_every_package():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    houses = {name: REPOSITORY / folder for name, folder in settings["package-dir"].items()}
    found = [".".join([name, *file.parent.relative_to(house).parts]) for name, house in houses.items()
             for file in house.rglob("__init__.py")]
    assert sorted(found) == sorted(settings["packages"])


def test_the_core_knows_nothing_of_the_experiments():
    for file in (REPOSITORY / "notebooks" / "amnesia").glob("*.py"):
        assert "amnesia_studies" not in file.read_text(), file.name


def forgetful(task):
    """A method that trains the very model that it was given, as a reader may."""
    with torch.no_grad():
        task.cvae.decoder[-1].bias.zero_()
        task.cvae.decoder[-1].weight.zero_()
    return task.cvae


@pytest.mark.slow
def test_your_own_method_stands_in_the_table(small):
    table = compare(forgetful, small, seeds=(0, 1), scale=0.005, n_jobs=1)
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in table.splitlines() if line.startswith("|")}
    assert list(lines)[-2:] == ["forgetful", "flat grey"] and {"replay (ours)", "retrain", "oracle"} <= set(lines)
    assert lines["forgetful"][:3] == ["2", "+0.000 ± 0.000", "1.000 ± 0.000"] and lines["retrain"][0] == "3"
    assert "0.005 of its steps" in table and small.test.name in table   # the small sets are not those of the released runs
    with pytest.raises(TypeError, match="nothing returned a NoneType"):
        small.forget(nothing, [0])
    small.store.dataset = "KMNIST"
    with pytest.raises(ValueError, match=r"dataset='KMNIST'.*of MNIST"):
        compare(forgetful, small)


def nothing(task):
    """A method that forgets to return."""


@pytest.mark.slow
@pytest.mark.usefixtures("no_array_of_a_tensor")
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_runs_top_to_bottom_in_miniature(path, small, monkeypatch):
    """Every run at a five-hundredth of its length, also where a notebook forgets by itself; tables of the released runs."""
    task, run = Experiment.task, Experiment.run
    monkeypatch.setattr(Experiment, "task", lambda self, forget, seed=0, scale=1.0: task(self, forget, seed, 0.002))
    monkeypatch.setattr(Experiment, "run", lambda self, function, *settings, **named: run(
        self, partial(function, scale=0.002), *settings, **named))
    monkeypatch.setitem(IMPORTANCE, "batch-mean", partial(batch_mean_fisher, n_samples=500))
    monkeypatch.setattr(references, "train_from_scratch", lambda task, digits: CVAE(**task.cvae.config))
    monkeypatch.setattr(diffusion, "drawings", partial(diffusion.drawings, n=6))
    own = {"10_beyond_mnist": {"full": True, "dataset": "MNIST"},                           # which else only reads
           "11_diffusion": {"steps": 2, "n_per_class": 2}}.get(path.stem, {})
    names = run_here(f"studies/{path.stem}", workspace=str(small.store.folder), n_jobs=1, scale=0.002, **own)
    if path.stem == "11_diffusion":
        verdicts = same_or_not(names["QUESTIONS"], {"CVAE": names["cvae"], "diffusion": names["denoiser"]})["verdict"]
        assert {"same", "**not**"} <= {*verdicts} and names["amnesiac_file"].settings["steps"] == 2
        seeds = {run["seed"] for row in ("retrain", "oracle") for run in names["seeded"](DENOISERS, [[0]])[row]}
        assert len(seeds) == 3 and names["denoiser_file"].settings["seed"] not in seeds
    elif "own" in names:
        assert len({str(record["settings"]) for record in names["own"]}) == len(names["own"]) > 1
        if path.stem == "5_attacks":
            assert list(names["beliefs"]) == ["original", "distilled amnesia", "retrain"]
            assert names["best"] == 7 and names["beliefs"]["original"][6] > 0.5    # a 0 under a wrong label, no other digit
    elif path.stem == "7_averages":
        assert len(names["pictures"]) == 11 and names["mixtures"].loc["notebook 3's default"]["average, P(0)"].min() > 0.9
    else:
        assert path.stem == "8_your_method" and "| average | 3 |" in names["table"]
