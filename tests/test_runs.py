"""The glue of the studies: which model, which labels, which images and how many each run takes, told by stand-ins."""

import pytest
import torch
from torch.nn.utils import prune

from amnesia import one_hot
from amnesia_studies import experiment as experiment_module
from amnesia_studies import relearning, runs, scoring
from amnesia_studies.experiment import DiffusionExperiment, Experiment

KEPT = [0, 1, 2, 3, 5, 6, 7, 8, 9]


class Model(str):
    """In the place of a model that came out: its name, and what runs ask of it."""

    classes, latent_dim = 10, 2

    def parameters(self):
        yield torch.zeros(1)


@pytest.fixture
def told(stand_in, monkeypatch):
    """told(name, result, module): a function of runs.py is stood in for. Its result says what it was given, but for the
    experiment, unless it is told here; or is told by a function of that. The calls are in told.calls[name]."""
    def tell(name, result=None, module=runs):
        def stand(*args, **named):
            given = [one for one in (*args, *named.values()) if one is not stand_in]
            tell.calls.setdefault(name, []).append(given)
            return (name, *given) if result is None else result(*given) if callable(result) else result

        monkeypatch.setattr(module, name, stand)

    tell.calls = {}
    return tell


@pytest.fixture
def experiment(stand_in, monkeypatch):
    """Whose method gives a model that is named for what it was asked."""
    monkeypatch.setattr(stand_in, "forget", lambda method, forget, seed=0, scale=1.0, **options: Model(
        f"{method} {forget} {seed} {scale} {options}"))
    stand_in.original.classes, stand_in.original.name = 10, "original"
    return stand_in


def labels_of(digits):
    return digits.labels.unique().tolist()


NEW = "naive [4, 7] 3 0.1 {'lam': 2}"
SCORE, SAVINGS, INVERSION = {"score": [NEW, [4, 7], 3]}, ("savings", NEW, 4, 3, 0.1), ("inversion", NEW, 4, 3, 0.1)
KINDS = "z alone", "z and label on the simplex", "z and label free"
RUNS = [
    ("studies springs springs-5000 diffusion", {"bounds": True}, SCORE | {"bounds": [NEW, [4, 7], 0.1]}),
    ("attacks", {"restarts": 5}, SCORE | {"savings": SAVINGS, "attacks": {"inversion from 100 images": INVERSION, **{
        kind: ("judged", ("draw", NEW, ("z", NEW, "the first judge", 4, kind, 5, 15, 3), "y"), 4) for kind in KINDS}}}),
    ("rows diffusion-recovery", {}, SCORE | {"inversion": INVERSION, "savings": (*SAVINGS, [10])}),
    ("one-label", {}, ("judged", ("draw_under", NEW, ("search_label", NEW, "the first judge", 4, 15, 3), 3, 0.1), 4)),
    ("savings", {}, {"savings": SAVINGS}),
    ("weights", {}, {"line": {str(i / 10): ("look_at", ("mixed", "original", [NEW], [i / 10])) for i in range(11)},
                   "rounded": {str(bits): ("look_at", ("rounded", NEW, bits)) for bits in (8, 6, 4)}})]


@pytest.mark.parametrize(("logs", "options", "expected"), RUNS)
def test_what_the_runs_of_a_log_ask_of_the_model_that_came_out(experiment, told, logs, options, expected):
    for name in ("savings", "inversion", "judged", "draw", "draw_under", "search_label", "look_at", "rounded"):
        told(name)
    told("search", lambda *given: (("z", *given), "y"))
    told("mixed", lambda base, *rest: ("mixed", base.name, *rest))
    told("score", lambda *given: {"score": [*given]})
    told("tight_bounds", lambda *given: {"bounds": [*given]})
    for log in logs.split():
        found = runs.RUNS[log](experiment, "naive", [4, 7], seed=3, scale=0.1, lam=2, **options)
        assert "score" not in found or found.pop("seconds") >= 0
        assert found == expected


def test_a_diffusion_model_also_draws_without_a_label(experiment, told, monkeypatch):
    for name, result in (("score", {}), ("savings", 1), ("inversion", 2), ("draw_under", None),
                         ("ask", (one_hot(torch.tensor([4] * 3 + [9] * 7), 10), None))):
        told(name, result)
    monkeypatch.setattr(runs, "Denoiser", Model)
    found = runs.forget_and_invert(experiment, "naive", [4, 7], seed=3, scale=0.1, lam=2)
    assert found["unconditional"] == [0, 0, 0, 0, 3, 0, 0, 0, 0, 7]
    (judge, (_, model, y, *how)), = told.calls["ask"]
    assert (judge, model, how) == ("the first judge", NEW, [3, 0.1, 1]) and not y.any()


def test_inversion_is_of_100_real_images_and_scored_on_1000_samples(experiment, told):
    for name in ("real_images", "judged", "draw"):
        told(name)
    told("invert", torch.arange(10.0))
    _, (_, model, z, y), label = runs.inversion(experiment, Model("mine"), 4, 3, 0.2)
    assert told.calls["invert"] == [["mine", ("real_images", experiment.train, 4, 3), 80, 3]] and (model, label) == ("mine", 4)
    assert torch.equal(y, torch.arange(10.0).expand(200, 10))
    assert torch.equal(z, torch.randn(200, 2, generator=torch.Generator().manual_seed(3)))


def test_the_second_judge_must_be_sure_of_this_very_label(experiment, told):
    p = torch.full((12, 10), 0.01)
    p[0, 4], p[1, 4], p[2, 4], p[3, 5] = 0.89, 0.91, 0.5, 0.95
    told("ask", (p, None)), told("images_to_text", len)
    assert runs.judged(experiment, torch.zeros(12, 784), 4) == {"hits": 1, "n": 12, "drawn": 8}
    assert told.calls["ask"][0][0] == experiment.second_judge


def test_the_label_is_taught_again_from_ten_and_from_a_hundred(experiment, told):
    told("relearn", 7, relearning)
    found, calls = relearning.savings(experiment, Model("mine"), 5, seed=3, scale=0.5), told.calls["relearn"]
    assert found == {k: {"digit": 7, "mirrored": dict.fromkeys("4679", 7)} for k in ("10", "100")}
    assert [(mirror_of, len(images)) for _, _, images, _, mirror_of, *_ in calls] == [
        (shape, k) for k in (10, 30) for shape in (None, 4, 6, 7, 9)]
    for model, judge, images, label, mirror_of, *how in calls:
        digits = experiment.train.only([mirror_of or 5]).images.view(-1, 28, 28)
        shown = (digits.flip(2) if mirror_of else digits).view(-1, 1, 784)
        assert (model, judge, label, how) == ("mine", "the first judge", 5, [500, 3])
        assert (shown == (255 * images).round().byte()).all(2).any(0).all()


@pytest.mark.parametrize("log", ["averages", "diffusion-mixtures"])
def test_models_that_forgot_apart_are_mixed(experiment, told, log):
    drawn = {}
    told("mixed", lambda base, models, shares: Model((base.name, models, shares)))
    told("look_at", str), told("images_to_text", len)
    told("draw", lambda model, z, y: drawn.update({str(model): (z, y)}) or torch.zeros(10, 784))
    found = runs.RUNS[log](experiment, "naive", [0, 8], seed=3, scale=0.5, lam=7)
    models = [f"naive [{label}] 3 0.5 {{'lam': 7}}" for label in (0, 8)]
    average, *sums = (str(("original", models, [share] * 2)) for share in (0.5, 1.0, 1.2))
    assert found == {"models": models, "average": average, "sums": {"1.0": sums[0], "1.2": sums[1]}, "drawn": 30}
    assert list(drawn) == [*models, average]
    z = torch.randn(1, 2, generator=torch.Generator().manual_seed(1)).expand(10, -1)
    assert all(torch.equal(shown, z) and torch.equal(y, torch.eye(10)) for shown, y in drawn.values())


@pytest.mark.parametrize(("remember", "method", "held"), [
    ("replay", "selective_amnesia", [KEPT, [0, 1, 3, 5, 6, 7, 8, 9], [0, 1, 3, 5, 6, 8, 9]]),
    ("distil", "distilled", [KEPT, [0, 1, 3, 5, 6, 7, 8, 9, 4], [0, 1, 3, 5, 6, 8, 9, 4, 2]])])
def test_labels_are_forgotten_in_turn_each_from_the_last_model(stand_in, told, remember, method, held):
    names, rounds = iter(("first", "second", "third")), []
    told(method, lambda task: rounds.append(task) or Model(next(names)))
    told("diagonal_fisher"), told("draw", lambda model, z, y: torch.zeros(len(y), 784))
    told("score", lambda *given: {"scored": [*given]})
    found = runs.RUNS[None](stand_in, [4, 2, 7], seed=3, scale=0.1, remember=remember)["rounds"]
    assert [one["scored"] for one in found] == [["first", [4], 3], ["second", [4, 2], 3], ["third", [4, 2, 7], 3]]
    assert [(task.original, task.fim, task.seed, task.scale) for task in rounds] == [
        (stand_in.original, stand_in.fim, 3, 0.1),
        *((model, ("diagonal_fisher", model, 5000), 3, 0.1) for model in ("first", "second"))]
    assert [task.forgotten.tolist() for task in rounds] == [[4], [2], [7]] and [task.kept.tolist() for task in rounds] == held
    model, z, y = told.calls["draw"][2]
    assert model == "third" and y.argmax(1).tolist() == [4] * 4 + [2] * 4 + [7] * 4 and torch.equal(z[:4], z[8:])
    assert torch.tensor(found[2]["drawn"]).shape == (3, 4, 28, 28)


def test_a_model_is_scored_label_by_label_by_the_first_judge(stand_in, told):
    stand_in.samples, model, kept = 3, Model("new"), [0, 1, 2, 3, 5, 6, 8, 9]
    samples, features = torch.arange(30).byte()[:, None].repeat(1, 784), torch.arange(30.0)[:, None]
    stand_in.real = None, stand_in.test.labels[:, None].float()
    stand_in.bound = lambda of, pictures: (of, labels_of(pictures))
    for name, result in (("sample_all", samples), ("ask", (one_hot(torch.arange(10).repeat_interleave(3), 10), features)),
                         ("model_metrics", {"kept_elbo": -1.0}), ("recall", lambda of, real: of[0, 0].item())):
        told(name, result, scoring)
    found = scoring.score(stand_in, model, [4, 7], seed=5)
    assert told.calls["sample_all"] == [[model, 3, 5]] and told.calls["ask"] == [["the first judge", samples]]
    (shown, seen, real, bounds, *labels), = told.calls["model_metrics"]
    assert shown.shape == (10, 3, 784) and shown[4, 0, 0] == 12 and seen[1] is features and real.unique().tolist() == kept
    assert labels == [[4, 7], kept] and bounds == [(model, kept), (model, [4, 7])]
    assert [(of.flatten().tolist(), real.unique().tolist(), len(real)) for of, real in told.calls["recall"]] == [
        ([3.0 * label, 3.0 * label + 1, 3.0 * label + 2], [label], 10) for label in kept]
    assert found["recall"] == 3 * sum(kept) / 8 and found["P"] == [1.0] * 10 and found["H"] == [0.0] * 10


def test_the_tight_bounds_are_of_forgotten_and_kept_test_images(stand_in, told):
    told("refit_encoder", "refitted", scoring)
    told("importance_weighted_bound", lambda model, digits: torch.full((3,), float(len(labels_of(digits)))), scoring)
    assert scoring.tight_bounds(stand_in, "new", [4, 7], scale=0.1) == {
        "forgotten_iw": 2.0, "kept_iw": 8.0, "forgotten_refitted_iw": 2.0}
    (fitted, pictures, steps), = told.calls["refit_encoder"]
    assert (fitted, steps, labels_of(pictures), len(pictures)) == ("new", 60, [4, 7], 60)
    assert [(one, labels_of(digits), len(digits)) for one, digits in told.calls["importance_weighted_bound"]] == [
        ("new", [4, 7], 20), ("new", [0, 1, 2, 3, 5, 6, 8, 9], 80), ("refitted", [4, 7], 20)]


def test_a_task_is_what_the_experiment_has(stand_in, told):
    """A diffusion model rehearses its drawings of what it is to keep."""
    task = stand_in.task([7, 4], seed=5, scale=0.5)
    assert (task.forgotten.tolist(), task.kept.tolist()) == ([4, 7], [0, 1, 2, 3, 5, 6, 8, 9])
    assert (task.seed, task.scale, task.recipe, task.fim) == (5, 0.5, stand_in.recipe, stand_in.fim)
    assert task.train is stand_in.train and task.original is not stand_in.original
    assert (task.steps, task.learning_rate, task.batch_size, task.drawings) == (1600, 5e-3, 384, None)
    told("drawings", stand_in.train, experiment_module)
    stand_in.__class__ = DiffusionExperiment
    task = stand_in.task([4])
    assert told.calls["drawings"] == [[stand_in.original]] and labels_of(task.drawings) == KEPT
    assert (task.steps, task.learning_rate) == (400, 1e-3)


def pruned(task):
    prune.l1_unstructured(task.original.decoder[0], "weight", 0.5)
    return task.original


@pytest.mark.parametrize(("name", "spoil"), [
    ("None", lambda task: None), ("float32", lambda task: task.original.double()), ("prune", pruned)])
def test_what_is_no_model_like_the_original_is_named(stand_in, name, spoil):
    with pytest.raises(TypeError, match=name):
        Experiment.forget(stand_in, spoil, [4])


def test_a_frozen_model_is_thawed_and_the_methods_options_reach_it(stand_in):
    def freezes(task, lam=1.0):
        return task.original.requires_grad_(lam != 7.0).train()

    model = Experiment.forget(stand_in, freezes, [4], lam=7.0)
    assert all(p.requires_grad for p in model.parameters()) and not model.training
    with pytest.raises(ValueError, match="forget="):
        stand_in.split(list(range(10)))
