"""Studies: a run's figures, forgetting one after another, the published tables, and the notebooks in miniature."""

import nbformat
import pytest
import torch
from conftest import REPOSITORY
from release import read
from release_studies import STUDIES, fashion_table, released, summary_table

from amnesia import CVAE, Digits, model_metrics
from amnesia.files import Saved
from experiments import bench as bench_module
from experiments.attacks import SEARCHES
from experiments.bench import RELEASED, Bench, bench
from experiments.methods import METHODS, Task, references
from experiments.sweep import Log, sweep, unpack
from experiments.tables import BOUNDS, FIGURES, markdown, paired, select, share_judged, spread


@pytest.fixture
def small(tmp_path, digits, monkeypatch):
    """A bench on the released files with a few digits to score, and 20 samples a label."""
    picks = [torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:800] for split in digits]
    few = [Digits(split.images[pick], split.labels[pick], split.name) for split, pick in zip(digits, picks, strict=True)]
    monkeypatch.setattr(bench_module, "load_digits", lambda *_: few)
    score = Bench.score
    monkeypatch.setattr(Bench, "score", lambda *arguments: score(*arguments, n=20))
    bench.cache_clear()
    return Bench(tmp_path, device="cpu")


def test_a_run_is_scored_as_notebook_05_does(small):
    result = small.run("original", [3, 8], seed=4)
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(10).repeat_interleave(20)
    samples = (small.cvae.generate(labels, z) * 255).round().byte().view(10, 20, 28, 28)
    kept = [0, 1, 2, 4, 5, 6, 7, 9]
    expected = model_metrics(small.judge, samples, small.cvae, small.test, [3, 8], kept)
    assert expected.items() <= result.items() and len(result["P"]) == len(result["H"]) == 10
    assert result["forgotten_probability"] == pytest.approx((result["P"][3] + result["P"][8]) / 2)


def test_a_bench_of_another_data_set_than_its_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset='KMNIST', but cvae.pt was made with dataset='MNIST'"):
        Bench(tmp_path, "KMNIST", "cpu")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_leaves_the_original_alone(small, method):
    before = {name: p.clone() for name, p in small.cvae.named_parameters()}
    result = small.run(method, [5], scale=0.002, bounds=True)
    record = {"settings": {"method": method, "forget": [5]}, "result": result}
    assert all(isinstance(figure(record), float) for figure in (FIGURES | BOUNDS).values())
    assert all(torch.equal(before[name], p) for name, p in small.cvae.named_parameters())
    assert result["kept_iw"] > result["kept_elbo"] - 20 and result["forgotten_refitted_iw"] <= 0


def test_a_run_that_diverges_says_so(small, monkeypatch):
    monkeypatch.setattr(Task, "learning_rate", 1e6)
    result = small.run("selective amnesia", [5], scale=0.02)
    assert set(result) == {"diverged"} and "diverged at step" in result["diverged"]


def test_bringing_back_says_all_there_is_to_say(small):
    result = small.bring_back("selective amnesia", [4], seed=1, scale=0.01, restarts=10)
    assert set(result["attacks"]) == {*SEARCHES, "inversion from 10 images", "inversion from 100 images"}
    assert all(0 <= one["hits"] <= one["n"] and len(unpack(one["drawn"])) == 8 for one in result["attacks"].values())
    figures = small.run("selective amnesia", [4], seed=1, scale=0.01)
    assert all(result[key] == figures[key] for key in ("forgotten_probability", "kept_elbo", "P"))
    assert result["relearning"].keys() == {"10", "100"} and result["resurgence"]["kept_elbo"] != figures["kept_elbo"]
    assert small.bring_back("original", [4], scale=0.01, restarts=10)["relearning"] == {"10": 0, "100": 0}


def test_one_after_another_starts_from_the_last_model_and_scores_all(small):
    rounds = small.sequence([4, 2], scale=0.01)["rounds"]
    first = small.run("selective amnesia", [4], scale=0.01)
    assert all(rounds[0][key] == first[key] for key in ("forgotten_probability", "kept_elbo", "P"))
    both = [rounds[1]["P"][label] for label in (2, 4)]
    assert rounds[1]["forgotten_probability"] == pytest.approx(sum(both) / 2) and rounds[1]["P"] != rounds[0]["P"]
    assert [torch.tensor(one["drawn"]).shape for one in rounds] == [(1, 4, 28, 28), (2, 4, 28, 28)]


def test_a_result_is_the_same_in_a_process_of_its_own(small):
    """Pickled for a worker, a bench reads its files anew there; one thread each, so the figures are the same."""
    grid = [{"method": "label edit", "forget": [1], "seed": seed, "scale": 0.005} for seed in (0, 1)]
    alone, again = (sweep(small.run, grid, Log(small.store.checkpoints / f"{n}.jsonl", {}), n_jobs=1) for n in (1, 2))
    assert [r["result"]["P"] for r in alone] == [r["result"]["P"] for r in again]
    rebuild, arguments = small.__reduce__()
    assert rebuild(*arguments).lineage == small.lineage


def test_shares_and_tables():
    confusion = torch.zeros(10, 10, dtype=torch.long)
    confusion[:, 0], confusion[range(10), range(10)] = 1, 3
    record = {"settings": {"forget": [0]}, "result": {"confusion": confusion.tolist()}}
    assert share_judged(record, [0], same=True) == 1 and share_judged(record, [1, 2], [0]) == pytest.approx(0.25)
    records = [{"settings": {"method": m, "forget": [0], "seed": s}, "result": {"x": x}}
               for m, s, x in (("a", 0, 5.0), ("a", 1, 7.0), ("b", 1, 1.0))]
    records.append({"settings": {"method": "a", "forget": [0], "seed": 2}, "result": {"diverged": "at once"}})
    assert len(select(records, method="a")) == 2 and len(select(records, lam=None)) == 3
    assert paired(select(records, method="a"), select(records, method="b"), lambda r: r["result"]["x"]) == [6.0]
    assert spread([1.0, 3.0], 1, sign=True) == "+2.0 ± 1.4" and spread([2.0], 1) == "2.0" and spread([]) == "–"
    assert spread([-0.01], 1) == "0.0"
    assert markdown(["a", "b"], [[1, 2]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


@pytest.fixture(scope="module")
def records():
    return released("studies.jsonl")


@pytest.mark.parametrize(("log", "files", "least"), [
    ("studies", ("cvae.pt", "fim-cvae.pt", "classifier.pt"), 200),
    ("attacks", ("cvae.pt", "fim-cvae.pt", "classifier.pt", "classifier-1.pt"), 50)])
def test_the_published_runs_start_from_the_released_files(log, files, least):
    digests = {name: Saved(RELEASED / name).digest for name in files}
    runs, lines = released(f"{log}.jsonl"), (RELEASED / f"{log}.jsonl").read_text().splitlines()
    assert len(runs) > least and len(lines) == len(runs)  # each line whole, none twice
    assert all(digests.items() <= record["lineage"].items() for record in runs)
    assert all("60,000" in " ".join(record["lineage"]) for record in runs)


def test_readme_has_their_table(records):
    readme = (REPOSITORY / "README.md").read_text()
    grey = {digit: read(f"evaluation-{digit}.json") for digit in range(10)}
    assert summary_table(records, released("attacks.jsonl"), grey) in readme
    assert fashion_table(released("FashionMNIST/studies.jsonl")) in readme


def test_a_published_run_comes_out_again(records, tmp_path, digits):
    """Label edit is quick enough to be run anew; another kind of CPU may round otherwise."""
    if len(digits[0]) != 60_000:
        pytest.skip("needs all of MNIST")
    again = Bench(tmp_path, device="cpu").run("dampening", [0], seed=0, bounds=True)
    published = next(r["result"] for r in select(records, method="dampening", forget=[0], seed=0, bounds=True))
    for key in ("forgotten_probability", "entropy", "kept_elbo", "kept_accuracy", "recall", "kept_iw"):
        assert again[key] == pytest.approx(published[key], abs=0.02, rel=0.02), key


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_runs_top_to_bottom_in_miniature(path, small, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(Task, "steps", 3)                # also where a notebook forgets by itself
    monkeypatch.setattr(references, "train_from_scratch", lambda task, digits: CVAE(**task.cvae.config))
    for name in ("run", "sequence", "bring_back"):
        original = getattr(Bench, name)
        monkeypatch.setattr(Bench, name, lambda self, original=original, **settings: original(self, **settings, scale=0.002))
    namespace = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith("# Setup"):
            exec(cell.source, namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace.update(workspace=str(small.store.folder), device="cpu", n_jobs=1)
    if "own" in namespace:
        grid = {str(record["settings"]) for record in namespace["own"]}
        assert len(grid) == len(namespace["own"]) > 3 and namespace["records"]
    else:
        models = ["original", "selective amnesia", "retrain"]
        assert [row[0] for row in namespace["rows"]] == list(namespace["models"]) == models
        assert max(namespace["beliefs"]["original"]) > 0.5    # the original has the digit, also under a wrong label
