"""The glue of the studies: which model, which labels, which images and how many each run takes, told by stand-ins."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import prune

from amnesia import Diverged
from amnesia.data import one_hot
from amnesia_studies import experiment as experiment_module
from amnesia_studies import runs, scoring
from amnesia_studies.denoiser import Denoiser
from amnesia_studies.experiment import DiffusionExperiment, Experiment
from amnesia_studies.relearning import savings

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


def real(experiment, label):
    """The pictures of a label in the training set, as bytes."""
    return {row.numpy().tobytes() for row in experiment.train.only([label]).images}


def are(images, pictures):
    return all((255 * row).round().byte().numpy().tobytes() in pictures for row in images)


def test_a_run_forgets_by_the_method_and_scores_what_came_out(experiment, told):
    told("score", {"kept_elbo": -1.0})
    told("tight_bounds", {"kept_iw": -2.0})
    result = runs.forget_and_score(experiment, "a method", [4], seed=3, scale=0.5, lam=7.0)
    assert result.pop("seconds") >= 0 and result == {"kept_elbo": -1.0} and not told.calls["tight_bounds"]
    result = runs.forget_and_score(experiment, "a method", [4], bounds=True)
    assert experiment.asked == [("a method", [4], 3, 0.5, {"lam": 7.0}), ("a method", [4], 0, 1.0, {})]
    (who, model, *rest), _ = told.calls["score"]
    assert who is experiment and model.name == "new [4] 3" and rest == [[4], 3]
    (who, model, *rest), = told.calls["tight_bounds"]
    assert model.name == "new [4] 0" and rest == [[4], 1.0] and result["kept_iw"] == -2.0


@pytest.mark.parametrize("run", [runs.forget_and_score, runs.forget_apart])
def test_a_run_that_diverges_says_so(experiment, monkeypatch, run):
    def diverges(*_):
        raise Diverged("at step 3")

    monkeypatch.setattr(experiment, "forget", diverges)
    assert run(experiment, "a method", [4]) == {"diverged": "at step 3"}


def test_a_run_recovers(experiment, told):
    told("score", lambda _, model, forget, seed: {"scored": model.name, "forget": forget, "seed": seed})
    told("fine_tune", Model("tuned"))
    told("attack", {"one": "images of one", "two": "images of two"})
    told("judged", lambda experiment, images, label: (images, label))
    told("all_savings", "savings")
    result = runs.forget_and_recover(experiment, "a method", [4, 7], seed=3, scale=0.1, restarts=5)
    assert result["scored"] == "new [4, 7] 3" and result["resurgence"] == {"scored": "tuned", "forget": [4, 7], "seed": 3}
    assert result["attacks"] == {"one": ("images of one", 4), "two": ("images of two", 4)} and result["savings"] == "savings"
    (model, pictures, named), = told.calls["fine_tune"]
    assert model.name == "new [4, 7] 3" and named == {"steps": 100, "seed": 3}
    assert pictures.labels.unique().tolist() == [0, 1, 2, 3, 5, 6, 8, 9] and len(pictures) == 240
    (model, judge, label, images, *rest), = told.calls["attack"]
    assert (model.name, judge, label, rest) == ("new [4, 7] 3", experiment.judge, 4, [3, 0.1, 5])
    assert len(images) == 30 and are(images, real(experiment, 4))
    (_, model, *rest), = told.calls["all_savings"]
    assert model.name == "new [4, 7] 3" and rest == [4, 3, 0.1]


def images_of(model, z, y, **guided):
    """In the place of draw()."""
    return SimpleNamespace(model=model, z=z, y=y, guided=guided)


@pytest.mark.parametrize("inside", [False, True])
def test_a_run_inverts(experiment, told, inside):
    found = torch.arange(10.0)
    told("score", {})
    told("invert", found)
    told("draw", images_of)
    told("judged", "judged")
    told("all_savings", "savings")
    told("along", "along")
    told("ask", lambda judge, images: (one_hot(torch.tensor([4] * 3 + [9] * 7), 10), None))
    result = runs.forget_and_invert(experiment, "a method", [4], seed=3, scale=0.1, inside=inside)
    (model, images, named), = told.calls["invert"]
    assert model.name == "new [4] 3" and named == {"restarts": 8, "steps": 40, "seed": 3} and are(images, real(experiment, 4))
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(3))
    (_, pictures, label), = told.calls["judged"]
    assert pictures.model is model and torch.equal(pictures.z, z) and label == 4
    assert torch.equal(pictures.y, found.expand(100, -1)) and pictures.guided == {}
    assert told.calls["all_savings"] == [(experiment, model, 4, 3, 0.1, [10])]
    assert (result["inversion"], result["savings"]) == ("judged", "savings") and ("path" in result) == inside
    if inside:
        assert result["path"] == "along" and told.calls["along"] == [(experiment, experiment.original, model)]
        (judge, without), = told.calls["ask"]
        assert judge == experiment.judge and without.guided == {"guidance": 1} and without.model is model
        assert torch.equal(without.y, torch.zeros(100, 10)) and torch.equal(without.z, z)
        assert result["unconditional"] == [0, 0, 0, 0, 3, 0, 0, 0, 0, 7]


def test_a_denoiser_is_inverted_from_half_as_many_starts(experiment, told, monkeypatch):
    monkeypatch.setattr(experiment, "forget", lambda *_: Denoiser((8, 8)))
    for name, result in (("score", {}), ("invert", torch.zeros(10)), ("draw", None), ("judged", None), ("all_savings", None)):
        told(name, result)
    runs.forget_and_invert(experiment, "a method", [4])
    assert told.calls["invert"][0][2] == {"restarts": 4, "steps": 400, "seed": 0}


def test_a_label_vector_is_searched_by_the_first_judge_and_its_samples_are_judged_by_the_second(experiment, told):
    told("search_label", torch.arange(10.0))
    told("draw", images_of)
    told("judged", {"hits": 1})
    assert runs.forget_and_search_label(experiment, "a method", [4, 7], seed=3, scale=0.2)["hits"] == 1
    (model, judge, label, named), = told.calls["search_label"]
    assert (judge, label, named) == (experiment.judge, 4, {"steps": 30, "seed": 3}) and model.name == "new [4, 7] 3"
    (_, pictures, label), = told.calls["judged"]
    assert pictures.model is model and pictures.y.shape == (200, 10) and label == 4
    assert torch.equal(pictures.z, torch.randn(200, 2, generator=torch.Generator().manual_seed(3)))


def test_the_second_judge_must_be_sure_of_this_very_label(experiment, told):
    p = torch.full((12, 10), 0.01)
    p[0, 4], p[1, 4], p[2, 4], p[3, 5] = 0.89, 0.91, 0.5, 0.95
    told("ask", (p, None))
    told("images_to_text", "text")
    images = torch.zeros(12, 784)
    assert runs.judged(experiment, images, 4) == {"hits": 1, "n": 12, "drawn": "text"}
    assert told.calls["ask"][0][0] == experiment.second_judge and len(told.calls["images_to_text"][0][0]) == 8


def test_the_label_is_taught_again_from_ten_and_from_a_hundred(experiment, told):
    told("relearn", 7)
    model = Model("new")
    result = runs.all_savings(experiment, model, 4, 3, 0.5)
    assert result == {k: {"digit": 7, "mirrored": dict.fromkeys("5679", 7)} for k in ("10", "100")}
    assert len(told.calls["relearn"]) == 10
    for (taught, judge, images, label, share, *of), k in zip(told.calls["relearn"], [10] * 5 + [100] * 5, strict=True):
        mirror, named = (of[0] if len(of) == 2 else None), of[-1]
        digits = experiment.train.only([4 if mirror is None else mirror]).images
        turned = digits if mirror is None else digits.view(-1, 28, 28).flip(2).flatten(1)
        assert (taught, judge, label, named) == (model, experiment.judge, 4, {"limit": 500, "seed": 3})
        assert len(images) == min(k, 30) and share == (0.85 if mirror is None else 0.7)
        assert are(images, {row.numpy().tobytes() for row in turned})


def test_savings_are_of_new_shapes_only(stand_in):
    shapes = []
    savings(lambda images, label, share, mirror_of=None: shapes.append(mirror_of) or 1, stand_in.train, 7, 5)
    assert shapes == [None, 4, 5, 6, 9]


def test_weights_are_altered(experiment, told):
    told("fine_tune", Model("tuned"))
    told("mixed", lambda base, models, shares: Model(f"{shares[0]} of the way"))
    told("rounded", lambda model, bits: Model(f"{model.name}, {bits} bits"))
    told("exchanged", lambda model, other, layers: Model(f"{model.name} with {layers}"))
    told("look_at", lambda _, model: model.name)
    told("sketch", "sketch")
    result = runs.forget_and_alter(experiment, "a method", [4], seed=3, scale=0.1)
    assert result["line"] == {str(share): f"{share} of the way" for share in (*experiment.way, 1.5, 2.0)}
    assert all(base is experiment.original and models[0].name == "new [4] 3" for base, models, _ in told.calls["mixed"])
    assert result["rounded"] == {str(bits): f"new [4] 3, {bits} bits" for bits in (8, 6, 4)}
    assert result["exchanged"] == {"decoder.0": "new [4] 3 with ['decoder.0']", "decoder.2": "new [4] 3 with ['decoder.2']",
                                   "decoder.4": "new [4] 3 with ['decoder.4']",
                                   "decoder.0 + decoder.2": "new [4] 3 with ['decoder.0', 'decoder.2']"}
    assert all(other is experiment.original for _, other, _ in told.calls["exchanged"])
    (model, turned, named), = told.calls["fine_tune"]
    assert result["turned"] == "tuned" and model.name == "new [4] 3" and named == {"steps": 100, "seed": 3}
    kept = experiment.train.only(KEPT)
    assert torch.equal(turned.labels, kept.labels)
    assert torch.equal(turned.images[5].view(28, 28), kept.images[5].view(28, 28).rot90())
    (models, labels), = told.calls["sketch"]
    assert [model.name for model in models] == list(result["line"].values()) and labels == [4]


@pytest.mark.parametrize("remember", ["replay", "distil"])
def test_labels_are_forgotten_in_turn_each_from_the_last_model(stand_in, told, remember):
    rounds, names = [], iter(("first", "second", "third"))

    def method(task):
        rounds.append((task.original, task.fim, task.forgotten.tolist(), sorted(task.kept.tolist()), task.seed, task.scale))
        return Model(next(names))

    for name in ("selective_amnesia", "distilled"):
        told(name, method if name == {"replay": "selective_amnesia", "distil": "distilled"}[remember] else None)
    told("diagonal_fisher", lambda model, n: f"of {model.name} from {n}")
    told("draw", torch.zeros(12, 784))
    told("draw", lambda model, z, y: torch.zeros(len(y), 784))
    told("score", lambda _, model, forget, seed: {"scored": model.name, "forget": forget, "seed": seed})
    found = runs.forget_in_turn(stand_in, [4, 2, 7], seed=3, scale=0.1, remember=remember)["rounds"]
    assert [(one["scored"], one["forget"], one["seed"]) for one in found] == [
        ("first", [4], 3), ("second", [2, 4], 3), ("third", [2, 4, 7], 3)]
    held = [KEPT, [0, 1, 3, 5, 6, 7, 8, 9], [0, 1, 3, 5, 6, 8, 9]]
    if remember == "distil":
        held = [KEPT, [0, 1, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 8, 9]]
    originals = [rounds[0][0], "first", "second"]
    fims = [stand_in.fim, "of first from 5000", "of second from 5000"]
    assert [(str(a) if i else a, b, c, d, e, f) for i, (a, b, c, d, e, f) in enumerate(rounds)] == [
        (original, fim, [label], kept, 3, 0.1)
        for original, fim, label, kept in zip(originals, fims, (4, 2, 7), held, strict=True)]
    assert all(torch.equal(p, q) for p, q in zip(originals[0].parameters(), stand_in.original.parameters(), strict=True))
    model, z, y = told.calls["draw"][2]
    assert model.name == "third" and y.argmax(1).tolist() == [4] * 4 + [2] * 4 + [7] * 4 and torch.equal(z[:4], z[8:])
    assert torch.tensor(found[2]["drawn"]).shape == (3, 4, 28, 28)


def test_models_that_forgot_apart_are_mixed(experiment, told):
    told("mix", "mixed")
    assert runs.forget_apart(experiment, "a method", [0, 8], seed=3, scale=0.5, seeds_apart=2, lam=7.0) == "mixed"
    assert experiment.asked == [("a method", [0], 3, 0.5, {"lam": 7.0}), ("a method", [8], 5, 0.5, {"lam": 7.0})]
    assert [model.name for model in told.calls["mix"][0][1]] == ["new [0] 3", "new [8] 5"]


def test_originals_of_other_seeds_are_mixed(stand_in, told):
    told("mix", "mixed")
    told("train_from_scratch", lambda task, digits: (task.seed, digits))
    assert runs.originals_apart(stand_in, [0, 8], seed=3) == "mixed"
    assert told.calls["mix"][0][1] == [(3, stand_in.train), (4, stand_in.train)]


def test_a_mixture_is_of_all_models_and_starts_from_the_original(experiment, told):
    a, b = Model("a"), Model("b")
    told("mixed", lambda base, models, shares: Model(f"{base if isinstance(base, Model) else 'original'} {models} {shares}"))
    told("look_at", lambda _, model: str(model))
    told("sketch", "sketch")
    found = runs.mix(experiment, [a, b])
    assert found["models"] == ["a", "b"] and found["average"] == "original [a, b] [0.5, 0.5]"
    assert found["sums"] == {scale: f"original [a, b] [{scale}, {scale}]" for scale in ("1.0", "1.2", "2.0")}
    assert found["line"] == {str(share): f"a [b] [{share}]" for share in experiment.way}
    (models, labels), = told.calls["sketch"]
    assert list(map(str, models)) == ["a", "b", "original [a, b] [0.5, 0.5]"] and list(labels) == list(range(10))


def test_a_sketch_is_of_each_label_by_each_model_from_one_z(experiment, told):
    told("draw", lambda model, z, y: torch.full((len(y), 784), {"a": 1, "b": 2}[model.name]))
    told("images_to_text", lambda images: images[:, 0].tolist())
    assert runs.sketch([Model("a"), Model("b")], [4, 7]) == [1, 1, 2, 2]
    (_, z, y), (_, other, _) = told.calls["draw"]
    assert torch.equal(z[0], z[1]) and torch.equal(z, other) and y.argmax(1).tolist() == [4, 7]


def test_a_model_is_scored_label_by_label_by_the_first_judge(stand_in, told):
    stand_in.samples = 3
    model = Model("new")
    samples = torch.arange(30).byte()[:, None].repeat(1, 784)
    features = torch.arange(30.0)[:, None]
    told("sample_all", samples, scoring)
    told("ask", (one_hot(torch.arange(10).repeat_interleave(3), 10), features), scoring)
    told("model_metrics", {"kept_elbo": -1.0}, scoring)
    told("precision_recall", lambda of, real: (of[0, 0].item(), 1.0), scoring)
    result = scoring.score(stand_in, model, [4, 7], seed=5)
    assert told.calls["sample_all"] == [(model, 3, 5)] and told.calls["ask"] == [(stand_in.judge, samples)]
    (judge, shown, scored, test, forgotten, kept, named), = told.calls["model_metrics"]
    assert judge == stand_in.judge and shown.shape == (10, 3, 784) and shown[4, 0, 0] == 12 and scored is model
    assert test is stand_in.test and (forgotten, kept) == ([4, 7], [0, 1, 2, 3, 5, 6, 8, 9])
    assert named.pop("seen")[1] is features and named == {"real": stand_in.real, "bound": stand_in.bound}
    of = [(features[0, 0].item(), real) for features, real in told.calls["precision_recall"]]
    assert of == [(3.0 * label, f"real {label}") for label in kept]
    assert (result["precision"], result["recall"]) == (3 * sum(kept) / 8, 1.0)
    assert result["P"] == [1.0] * 10 and result["H"] == [0.0] * 10


def test_samples_are_of_each_label_in_turn_by_the_seed(told):
    told("draw", lambda model, z, y: (z, y), scoring)
    z, y = scoring.sample_all(Model("new"), 3, seed=5)
    assert y.argmax(1).tolist() == [label for label in range(10) for _ in range(3)]
    assert torch.equal(z, torch.randn(30, 2, generator=torch.Generator().manual_seed(5)))


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


def test_a_task_is_what_the_experiment_has(stand_in):
    task = stand_in.task([7, 4], seed=5, scale=0.5)
    assert (task.forgotten.tolist(), task.kept.tolist()) == ([4, 7], [0, 1, 2, 3, 5, 6, 8, 9])
    assert (task.seed, task.scale, task.recipe, task.fim) == (5, 0.5, stand_in.recipe, stand_in.fim)
    assert task.train is stand_in.train and task.original is not stand_in.original
    assert (task.steps, task.learning_rate, task.batch_size, task.drawings) == (1600, 5e-3, 384, None)


def test_a_diffusion_model_rehearses_what_it_is_to_keep(stand_in, monkeypatch):
    shown = []
    monkeypatch.setattr(experiment_module, "drawings", lambda model: shown.append(model) or stand_in.train)
    stand_in.__class__ = DiffusionExperiment
    task = stand_in.task([4])
    assert shown == [stand_in.original] and task.drawings.labels.unique().tolist() == KEPT
    assert (task.steps, task.learning_rate) == (400, 1e-3)


def test_each_log_has_its_kind_of_run(stand_in, tmp_path, monkeypatch):
    stand_in.store, stand_in.lineage = SimpleNamespace(checkpoints=tmp_path, dataset="MNIST"), {"cvae.pt": "a"}
    stand_in.second_judge_file = SimpleNamespace(name="classifier-1.pt", digest="b")
    with_method = {log: lambda who, log=log, **one: {"seconds": 1.0, "log": log, "given": str(one)} for log in runs.RUNS}
    monkeypatch.setattr(experiment_module, "RUNS", with_method)
    in_turn = {"studies": lambda who, **one: {"rounds": [{}] * len(one["forget"])}}
    monkeypatch.setattr(experiment_module, "WITHOUT_METHOD", in_turn)
    for log in runs.RUNS:
        table = stand_in.run([{"method": "label edit", "forget": [4], "seed": 1, "lam": 2.0}], log, n_jobs=1)
        result = table["record"][0]["result"]
        assert result["log"] == log and result["given"] == str({"method": "label edit", "forget": [4], "seed": 1, "lam": 2.0})
        judged = log in ("attacks", "one-label", "diffusion-recovery", "rows")
        assert table["record"][0]["lineage"] == {"cvae.pt": "a"} | ({"classifier-1.pt": "b"} if judged else {})
    table = stand_in.run([{"forget": [4, 2], "seed": 1}], n_jobs=1)
    assert table["label"].tolist() == ["4", "4, 2"] and table["method"].tolist() == ["in turn"] * 2


def test_the_runs_of_each_log_are_those_that_made_it():
    assert runs.RUNS["studies"] is runs.RUNS["diffusion"] is runs.forget_and_score
    assert runs.RUNS["attacks"] is runs.forget_and_recover and runs.RUNS["savings"] is runs.forget_and_relearn
    assert runs.RUNS["averages"] is runs.RUNS["diffusion-mixtures"] is runs.forget_apart
    assert runs.RUNS["weights"] is runs.forget_and_alter and runs.RUNS["one-label"] is runs.forget_and_search_label
    assert runs.RUNS["rows"] is runs.forget_and_invert and runs.RUNS["diffusion-recovery"].keywords == {"inside": True}
    assert {"studies": runs.forget_in_turn, "averages": runs.originals_apart} == runs.WITHOUT_METHOD


@pytest.mark.parametrize(("name", "spoil"), [
    ("NoneType", lambda task: None), ("float64", lambda task: task.original.double()),
    ("bfloat16", lambda task: task.original.bfloat16()), ("weight_orig", lambda task: pruned(task.original))])
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
    assert set(Experiment.methods) > {"original", "naive"} and set(DiffusionExperiment.methods) == {
        "original", "selective amnesia", "retrain", "oracle"}
    with pytest.raises(ValueError, match=r"forget=\[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]"):
        stand_in.split(list(range(10)))
