"""The glue of the studies: which model, which labels, which images and how many each run takes, told by stand-ins."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import prune

from amnesia.data import one_hot
from amnesia_studies import experiment as experiment_module
from amnesia_studies import relearning, runs, scoring
from amnesia_studies.denoiser import Denoiser
from amnesia_studies.experiment import DiffusionExperiment, Experiment

KEPT = [0, 1, 2, 3, 5, 6, 7, 8, 9]


class Model:
    """In the place of a model that came out: its name, and what runs ask of it."""

    classes, latent_dim = 10, 2

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name

    def parameters(self):
        yield torch.zeros(1)


@pytest.fixture
def told(monkeypatch):
    """told(name, result, module): a function of runs.py is stood in for; calls are kept in told.calls[name]. The result may
    be a function of the arguments."""
    def tell(name, result=None, module=runs):
        tell.calls[name] = []

        def stand_in(*args, **named):
            tell.calls[name].append((*args, named) if named else args)
            return result(*args, **named) if callable(result) else result

        monkeypatch.setattr(module, name, stand_in)

    tell.calls = {}
    return tell


@pytest.fixture
def experiment(stand_in, monkeypatch):
    """Whose method gives "the new model" and notes what it was asked."""
    stand_in.asked = []

    def forget(method, forget, seed=0, scale=1.0, **options):
        stand_in.asked.append((method, forget, seed, scale, options))
        return Model(f"new {forget} {seed}")

    monkeypatch.setattr(stand_in, "forget", forget)
    return stand_in


def are(images, pictures):
    """Whether images in [0, 1] are all among these bytes."""
    pictures = {row.numpy().tobytes() for row in pictures}
    return all((255 * row).round().byte().numpy().tobytes() in pictures for row in images)


def test_a_run_forgets_by_the_method_and_scores_what_came_out(experiment, told):
    told("score", {"kept_elbo": -1.0})
    told("tight_bounds", {"kept_iw": -2.0})
    result = runs.forget_and_score(experiment, "a method", [4], seed=3, scale=0.5, lam=7.0)
    assert result.pop("seconds") >= 0 and result == {"kept_elbo": -1.0} and not told.calls["tight_bounds"]
    result = runs.forget_and_score(experiment, "a method", [4], seed=2, scale=0.25, bounds=True)
    assert experiment.asked == [("a method", [4], 3, 0.5, {"lam": 7.0}), ("a method", [4], 2, 0.25, {})]
    (who, model, *rest), _ = told.calls["score"]
    assert who is experiment and model.name == "new [4] 3" and rest == [[4], 3] and result["kept_iw"] == -2.0
    (_, model, *rest), = told.calls["tight_bounds"]
    assert model.name == "new [4] 2" and rest == [[4], 0.25]


def of_model(*asked):
    """The arguments, for a result that tells them, a model by its name."""
    return [str(one) if isinstance(one, Model) else one for one in asked if not isinstance(one, Experiment)]


def test_a_run_recovers(experiment, told):
    told("score", {"kept_elbo": -1.0})
    told("search", lambda *asked, seed: ((*asked, seed), None))
    told("draw", lambda model, z, y: (model, z))
    told("judged", lambda _, images, label: (images, label))
    told("inversion", of_model), told("savings", of_model)
    result = runs.forget_and_recover(experiment, "a method", [4, 7], seed=3, scale=0.1, restarts=5)
    new = "new [4, 7] 3"
    assert result["kept_elbo"] == -1.0 and result["savings"] == [new, 4, 3, 0.1]
    assert result["attacks"].pop("inversion from 100 images") == [new, 4, 3, 0.1]
    assert list(result["attacks"]) == ["z alone", "z and label on the simplex", "z and label free"]
    for kind, ((drew, (model, judge, label, *how)), judged_as) in result["attacks"].items():
        assert (drew.name, model, judge, how) == (new, drew, experiment.judge, [kind, 5, 15, 3]) and label == judged_as == 4


@pytest.mark.parametrize("diffusion", [False, True])
def test_a_run_inverts(experiment, told, monkeypatch, diffusion):
    told("score", {"kept_elbo": -1.0})
    told("inversion", of_model), told("savings", of_model)
    told("draw", lambda model, z, y, guidance: (model, z, y, guidance))
    told("ask", (one_hot(torch.tensor([4] * 3 + [9] * 7), 10), None))
    if diffusion:
        monkeypatch.setattr(runs, "Denoiser", Model)
    result = runs.forget_and_invert(experiment, "a method", [4], seed=3, scale=0.1)
    assert result["inversion"] == ["new [4] 3", 4, 3, 0.1] and result["savings"] == ["new [4] 3", 4, 3, 0.1, [10]]
    assert result.get("unconditional") == ([0, 0, 0, 0, 3, 0, 0, 0, 0, 7] if diffusion else None)
    for judge, (model, z, y, guidance) in told.calls["ask"]:
        assert judge == experiment.judge and model.name == "new [4] 3" and guidance == 1 and not y.any()
        assert len(y) == 100 and torch.equal(z, torch.randn(100, 2, generator=torch.Generator().manual_seed(3)))


def test_the_label_vector_that_is_found_is_drawn_under_and_its_samples_are_judged(experiment, told):
    """By inversion of 100 real images, and by the search for one label with the first judge."""
    for name in ("invert", "search_label"):
        told(name, torch.arange(10.0))
    told("draw", lambda model, z, y: (model, z, y))
    told("judged", {"hits": 1})
    assert runs.forget_and_search_label(experiment, "a method", [4, 7], seed=3, scale=0.2) == {"hits": 1}
    assert runs.inversion(experiment, Model("mine"), 4, 3, 0.2) == {"hits": 1}
    (model, judge, label, named), = told.calls["search_label"]
    assert (model.name, judge, label, named) == ("new [4, 7] 3", experiment.judge, 4, {"steps": 30, "seed": 3})
    (inverted, images, named), = told.calls["invert"]
    assert inverted.name == "mine" and are(images, experiment.train.only([4]).images) and len(images) == 30
    assert named == {"steps": 80, "seed": 3}
    for of, (_, (drew, z, y), label) in zip((model, inverted), told.calls["judged"], strict=True):
        assert drew is of and label == 4 and torch.equal(y, torch.arange(10.0).expand(200, 10))
        assert torch.equal(z, torch.randn(200, 2, generator=torch.Generator().manual_seed(3)))


def test_the_second_judge_must_be_sure_of_this_very_label(experiment, told):
    p = torch.full((12, 10), 0.01)
    p[0, 4], p[1, 4], p[2, 4], p[3, 5] = 0.89, 0.91, 0.5, 0.95
    told("ask", (p, None))
    told("images_to_text", "text")
    assert runs.judged(experiment, torch.zeros(12, 784), 4) == {"hits": 1, "n": 12, "drawn": "text"}
    assert told.calls["ask"][0][0] == experiment.second_judge and len(told.calls["images_to_text"][0][0]) == 8


def test_the_label_is_taught_again_from_ten_and_from_a_hundred(experiment, told):
    told("relearn", 7, relearning)
    result = runs.forget_and_relearn(experiment, "a method", [5], seed=3, scale=0.5)
    assert result == {"savings": {k: {"digit": 7, "mirrored": dict.fromkeys("4679", 7)} for k in ("10", "100")}}
    assert len(told.calls["relearn"]) == 10
    for (model, judge, images, label, mirror_of, *how), k in zip(told.calls["relearn"], [10] * 5 + [100] * 5, strict=True):
        digits = experiment.train.only([5 if mirror_of is None else mirror_of]).images
        pictures = digits if mirror_of is None else digits.view(-1, 28, 28).flip(2).flatten(1)
        assert (model.name, judge, label, how) == ("new [5] 3", experiment.judge, 5, [500, 3])
        assert len(images) == min(k, 30) and are(images, pictures)
    assert [asked[4] for asked in told.calls["relearn"]] == [None, 4, 6, 7, 9] * 2


def mixture(experiment):
    """In the place of mixed(): the model's name says of what it is."""
    return lambda base, models, shares: Model(f"{'original' if base is experiment.original else base} {models} {shares}")


def test_weights_are_altered(experiment, told):
    told("mixed", mixture(experiment))
    told("rounded", lambda model, bits: Model(f"{model}, {bits} bits"))
    told("look_at", lambda _, model: model.name)
    result = runs.forget_and_alter(experiment, "a method", [4], seed=3, scale=0.1)
    assert result["line"] == {f"{i / 10}": f"original [new [4] 3] [{i / 10}]" for i in range(11)}
    assert result["rounded"] == {str(bits): f"new [4] 3, {bits} bits" for bits in (8, 6, 4)}


def test_models_that_forgot_apart_are_mixed(experiment, told):
    told("mixed", mixture(experiment))
    told("look_at", lambda _, model: model.name)
    told("draw", lambda model, z, y: [model.name, z, y])
    told("images_to_text", "text")
    told.calls["cat"] = []
    experiment.original.classes = 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", lambda parts: told.calls["cat"].extend(parts))
        found = runs.forget_apart(experiment, "a method", [0, 8], seed=3, scale=0.5, lam=7.0)
    assert experiment.asked == [("a method", [label], 3, 0.5, {"lam": 7.0}) for label in (0, 8)]
    both = "original [new [0] 3, new [8] 3]"
    assert found == {"models": ["new [0] 3", "new [8] 3"], "average": f"{both} [0.5, 0.5]", "drawn": "text",
                     "sums": {scale: f"{both} [{scale}, {scale}]" for scale in ("1.0", "1.2")}}
    assert [name for name, *_ in told.calls["cat"]] == ["new [0] 3", "new [8] 3", f"{both} [0.5, 0.5]"]
    assert all(torch.equal(y, torch.eye(10)) and torch.equal(z, told.calls["cat"][0][1][:1].expand(10, -1))
               for _, z, y in told.calls["cat"])


@pytest.mark.parametrize("remember", ["replay", "distil"])
def test_labels_are_forgotten_in_turn_each_from_the_last_model(stand_in, told, remember):
    rounds, names = [], iter(("first", "second", "third"))

    def method(task):
        rounds.append((task.original, task.fim, task.forgotten.tolist(), sorted(task.kept.tolist()), task.seed, task.scale))
        return Model(next(names))

    for name in ("selective_amnesia", "distilled"):
        told(name, method if name == {"replay": "selective_amnesia", "distil": "distilled"}[remember] else None)
    told("diagonal_fisher", lambda model, n: f"of {model.name} from {n}")
    told("draw", lambda model, z, y: torch.zeros(len(y), 784))
    told("score", lambda _, model, forget, seed: {"scored": model.name, "forget": forget, "seed": seed})
    found = runs.forget_in_turn(stand_in, [4, 2, 7], seed=3, scale=0.1, remember=remember)["rounds"]
    assert [(one["scored"], one["forget"], one["seed"]) for one in found] == [
        ("first", [4], 3), ("second", [2, 4], 3), ("third", [2, 4, 7], 3)]
    held = [KEPT, [0, 1, 3, 5, 6, 7, 8, 9], [0, 1, 3, 5, 6, 8, 9]]
    if remember == "distil":
        held = [KEPT, [0, 1, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 8, 9]]
    fims = [stand_in.fim, "of first from 5000", "of second from 5000"]
    assert [one[1:] for one in rounds] == [(fim, [label], kept, 3, 0.1)
                                           for fim, label, kept in zip(fims, (4, 2, 7), held, strict=True)]
    assert [str(one[0]) for one in rounds[1:]] == ["first", "second"]
    assert all(torch.equal(p, q) for p, q in zip(rounds[0][0].parameters(), stand_in.original.parameters(), strict=True))
    model, z, y = told.calls["draw"][2]
    assert model.name == "third" and y.argmax(1).tolist() == [4] * 4 + [2] * 4 + [7] * 4 and torch.equal(z[:4], z[8:])
    assert torch.tensor(found[2]["drawn"]).shape == (3, 4, 28, 28)


def test_a_model_is_scored_label_by_label_by_the_first_judge(stand_in, told):
    stand_in.samples, model = 3, Model("new")
    samples = torch.arange(30).byte()[:, None].repeat(1, 784)
    features = torch.arange(30.0)[:, None]
    stand_in.real = None, stand_in.test.labels[:, None].float()
    told("sample_all", samples, scoring)
    told("ask", (one_hot(torch.arange(10).repeat_interleave(3), 10), features), scoring)
    told("model_metrics", {"kept_elbo": -1.0}, scoring)
    stand_in.bound = lambda of, pictures: (of, pictures.labels.unique().tolist())
    told("recall", lambda of, real: of[0, 0].item(), scoring)
    result = scoring.score(stand_in, model, [4, 7], seed=5)
    assert told.calls["sample_all"] == [(model, 3, 5)] and told.calls["ask"] == [(stand_in.judge, samples)]
    (shown, seen, real, bounds, forgotten, kept), = told.calls["model_metrics"]
    assert shown.shape == (10, 3, 784) and shown[4, 0, 0] == 12 and seen[1] is features and real.unique().tolist() == kept
    assert (forgotten, kept) == ([4, 7], [0, 1, 2, 3, 5, 6, 8, 9]) and bounds == [(model, kept), (model, forgotten)]
    asked = [(of.flatten().tolist(), real.unique().tolist(), len(real)) for of, real in told.calls["recall"]]
    assert asked == [([3.0 * label, 3.0 * label + 1, 3.0 * label + 2], [label], 10) for label in kept]
    assert result["recall"] == 3 * sum(kept) / 8 and result["P"] == [1.0] * 10 and result["H"] == [0.0] * 10


def test_the_tight_bounds_are_of_forgotten_and_kept_test_images(stand_in, told):
    model, refitted = Model("new"), Model("refitted")
    told("refit_encoder", refitted, scoring)
    told("importance_weighted_bound", lambda model, digits: torch.full((3,), float(len(digits.labels.unique())))
         if model.name == "new" else torch.full((3,), -1.0), scoring)
    assert scoring.tight_bounds(stand_in, model, [4, 7], scale=0.1) == {
        "forgotten_iw": 2.0, "kept_iw": 8.0, "forgotten_refitted_iw": -1.0}
    (fitted, pictures, named), = told.calls["refit_encoder"]
    assert fitted is model and pictures.labels.unique().tolist() == [4, 7] and len(pictures) == 60 and named == {"steps": 60}
    asked = [(one, sorted(digits.labels.unique().tolist())) for one, digits in told.calls["importance_weighted_bound"]]
    assert asked == [(model, [4, 7]), (model, [0, 1, 2, 3, 5, 6, 8, 9]), (refitted, [4, 7])]
    assert all(torch.isin(digits.images[0], stand_in.test.images).all() and len(digits) < 100
               for _, digits in told.calls["importance_weighted_bound"])


def test_a_task_is_what_the_experiment_has(stand_in, monkeypatch):
    """A diffusion model rehearses its drawings of what it is to keep."""
    task = stand_in.task([7, 4], seed=5, scale=0.5)
    assert (task.forgotten.tolist(), task.kept.tolist()) == ([4, 7], [0, 1, 2, 3, 5, 6, 8, 9])
    assert (task.seed, task.scale, task.recipe, task.fim) == (5, 0.5, stand_in.recipe, stand_in.fim)
    assert task.train is stand_in.train and task.original is not stand_in.original
    assert (task.steps, task.learning_rate, task.batch_size, task.drawings) == (1600, 5e-3, 384, None)
    shown = []
    monkeypatch.setattr(experiment_module, "drawings", lambda model: shown.append(model) or stand_in.train)
    stand_in.__class__ = DiffusionExperiment
    task = stand_in.task([4])
    assert shown == [stand_in.original] and task.drawings.labels.unique().tolist() == KEPT
    assert (task.steps, task.learning_rate) == (400, 1e-3)


MADE_BY = {"studies": "score", "springs": "score", "springs-5000": "score", "attacks": "recover", "savings": "relearn",
           "weights": "alter", "averages": "apart", "one-label": "search_label", "rows": "invert", "diffusion": "score",
           "diffusion-recovery": "invert", "diffusion-mixtures": "apart", None: "in_turn"}


def test_each_log_has_its_kind_of_run(stand_in, tmp_path, monkeypatch):
    stand_in.store, stand_in.lineage = SimpleNamespace(checkpoints=tmp_path, dataset="MNIST"), {"cvae.pt": "a"}
    stand_in.second_judge_file = SimpleNamespace(name="classifier-1.pt", digest="b")
    assert {log: run.__name__.removeprefix("forget_and_").removeprefix("forget_") for log, run in runs.RUNS.items()} == MADE_BY
    for log in runs.RUNS:
        monkeypatch.setitem(runs.RUNS, log, lambda who, log=log, **one: {"log": log, "given": str(one)})
    for log in {*runs.RUNS} - {None}:
        record, = stand_in.run([{"method": "label edit", "forget": [4], "seed": 1, "lam": 2.0}], log, n_jobs=1)["record"]
        given = {"method": "label edit", "forget": [4], "seed": 1, "lam": 2.0}
        assert record["result"] == {"log": log, "given": str(given)}
        judged = log in ("attacks", "one-label", "diffusion-recovery", "rows")
        assert record["lineage"] == {"cvae.pt": "a"} | ({"classifier-1.pt": "b"} if judged else {})
    monkeypatch.setitem(runs.RUNS, None, lambda who, **one: {"rounds": [{}] * len(one["forget"])})
    table = stand_in.run([{"forget": [4, 2], "seed": 1}], n_jobs=1)
    assert table["label"].tolist() == ["4", "4, 2"] and table["method"].tolist() == ["in turn"] * 2


@pytest.mark.parametrize(("name", "spoil"), [
    ("None", lambda task: None), ("float32", lambda task: task.original.double()),
    ("float32", lambda task: task.original.bfloat16()), ("prune", lambda task: pruned(task.original))])
def test_what_is_no_model_like_the_original_is_named(stand_in, name, spoil):
    with pytest.raises(TypeError, match=name):
        Experiment.forget(stand_in, spoil, [4])


def pruned(model):
    prune.l1_unstructured(model.decoder[0], "weight", 0.5)
    return model


def test_a_frozen_model_is_thawed_and_the_methods_options_reach_it(stand_in):
    def freezes(task, lam=1.0):
        return task.original.requires_grad_(lam != 7.0).train()

    model = Experiment.forget(stand_in, freezes, [4], lam=7.0)
    assert all(p.requires_grad for p in model.parameters()) and not model.training
    assert set(Experiment.methods) > {"original", "naive"} and (Experiment.file, DiffusionExperiment.file) == ("cvae", "denoiser")
    assert DiffusionExperiment.network is Denoiser and {*DiffusionExperiment.methods} == {
        "original", "selective amnesia", "retrain", "oracle"}
    with pytest.raises(ValueError, match=r"forget=\[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]"):
        stand_in.split(list(range(10)))
