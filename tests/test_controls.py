"""The controls: which model each run takes, with which labels, images and counts, by stand-ins; F beside brute force."""

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from amnesia import Classifier, negative_elbo_terms, one_hot
from amnesia_studies import controls
from amnesia_studies.logs import Log
from amnesia_studies.methods import Task

LOOK = "share", "P", "H", "contrast"


@pytest.fixture
def world(stand_in, tmp_path):
    """An Experiment of few weights, whose files go to an empty folder."""
    stand_in.store = SimpleNamespace(checkpoints=tmp_path)
    stand_in.fim = {name: torch.rand_like(p) for name, p in stand_in.original.named_parameters()}
    return stand_in


def shifted(model, by):
    """A copy with every weight so much larger."""
    model = deepcopy(model)
    for p in model.parameters():
        p.data += by
    return model


def apart(one, other):
    """By how much every weight of one model is larger."""
    changes = torch.cat([(p - q).flatten() for p, q in zip(one.parameters(), other.parameters(), strict=True)])
    assert changes.std() < 1e-5
    return round(changes.mean().item(), 3)


@pytest.mark.parametrize(("kind", "missing", "of_training"), [
    ("original", [], 2), ("retrain", [0, 8], 102), ("oracle", "noise for 0, 8", 102)])
def test_where_a_control_starts(world, monkeypatch, kind, missing, of_training):
    trained, before = [], deepcopy(world.original)
    for name, told in (("train_from_scratch", "original"), ("retrain", "retrain"), ("oracle", "oracle")):
        monkeypatch.setattr(controls, name, lambda task, *digits, told=told: trained.append(
            (told, task.seed, task.forgotten.tolist(), *map(len, digits))) or shifted(task.original, 1))
    monkeypatch.setattr(controls, "diagonal_fisher", lambda model, n: {
        "of": model.decoder[0].weight.detach(), "n and seed": torch.tensor([n, torch.initial_seed()])})
    for _ in range(2):                                      # the second time from the workspace
        model, fim = controls.origin(world, kind, 2, [0, 8])
        assert trained == [(kind, of_training, [0, 8], *[300] * (not missing))] and apart(model, before) == 1
        assert torch.equal(fim["of"], model.decoder[0].weight) and fim["n and seed"].tolist() == [50_000, 2]
    assert apart(world.original, before) == 0               # the Experiment itself is as it was
    assert controls.origin(world, "original", 0, [0]) == (world.original, world.fim)


@pytest.fixture
def forgetting(world, monkeypatch):
    """asked: of each amnesia (model, F, labels, seed, options); its weights are larger by 1 + label. never: the (model, F) that
    never knew."""
    asked, never = [], (shifted(world.original, 10), {name: f + 1 for name, f in world.fim.items()})

    def method(task, **options):
        asked.append((task.original, task.fim, task.forgotten.tolist(), task.seed, options))
        return shifted(task.original, 1 + task.forgotten.item())

    monkeypatch.setattr(controls, "METHODS", {"distilled amnesia": method, "another": partial(method, named="another")})
    monkeypatch.setattr(controls, "origin", lambda experiment, kind, seed, forget=(0,): (
        (world.original, world.fim) if kind == "original" else never))
    monkeypatch.setattr(controls, "attacked", lambda experiment, before, after, label, seed: {
        "figures": (before, apart(after, before), label, seed)})
    return SimpleNamespace(asked=asked, never=never)


@pytest.mark.parametrize(("options", "used"), [({"lam": 0.0}, {"lam": 0.0}), ({"name": "another"}, {"named": "another"})])
def test_amnesia_of_a_model_that_never_knew(world, forgetting, options, used):
    assert controls.amnesia(world, "retrain", 2, 8, **options) == {"figures": (forgetting.never[0], 9, 8, 2)}
    assert forgetting.asked == [(*forgetting.never, [8], 2, used)]


@pytest.mark.parametrize(("kind", "matched"), [("drawn", ""), ("drawn", "decoder"), ("identity", "decoder")])
def test_springs_are_scaled_to_the_defaults_sum(world, forgetting, monkeypatch, kind, matched):
    other = {name: torch.randn_like(p) for name, p in world.original.named_parameters()}
    monkeypatch.setattr(controls, "diagonal_fisher", lambda model, n, images: other)
    for _ in range(2):                                      # the first leaves its springs not to the second
        line = controls.springs(world, "original", 0, 0, kind, matched, 0.3)
        model, fim, *how = forgetting.asked.pop()
        assert (model, how, line["figures"]) == (world.original, [[0], 0, {"lam": 0.3}], (model, 1, 0, 0))
        other = {name: torch.ones_like(f) for name, f in other.items()} if kind == "identity" else other
        assert all(torch.allclose(f, line["scaled"] * other[name].clamp_min(0)) for name, f in fim.items())
        assert torch.isclose(*(sum(f.sum() for key, f in fs.items() if key.startswith(matched)) for fs in [world.fim, fim]))


def test_the_average_is_of_two_that_forgot_one_each(world, forgetting, monkeypatch):
    monkeypatch.setattr(controls, "look_at", lambda experiment, one: apart(one, forgetting.never[0]))
    monkeypatch.setattr(controls, "pictures_between", lambda experiment, one, other, label: (apart(other, one), label))
    assert controls.average(world, "retrain", 1, 0.3) == {"models": [1, 9], "average": 5, "pictures_share": [(8, 0), (8, 8)]}
    assert forgetting.asked == [(*forgetting.never, [label], 1, {"lam": 0.3}) for label in (0, 8)]


def test_one_copy_is_taught_a_0_the_other_an_8(world, forgetting, monkeypatch):
    """And what each is not taught goes on to mean noise."""
    told = []
    monkeypatch.setattr(controls, "nats", lambda model, x, y: told.append((model, *y.argmax(1).unique().tolist())) or x.sum(1))
    monkeypatch.setattr(Task, "minimise", lambda task, model, loss, *_, **__: loss() and shifted(
        model, 1 + task.forgotten.item()))
    monkeypatch.setattr(controls, "averaged", lambda _, *models: [apart(one, forgetting.never[0]) for one in models])
    assert controls.taught(world, "oracle", 1) == [9, 1]
    assert [labels for _, *labels in told] == [[0, 1, 2, 3, 4, 5, 6, 7, 9], [8], [*range(1, 10)], [0]]
    assert all(apart(model, forgetting.never[0]) == 0 for model, *_ in told)


def test_a_strict_judge_takes_what_is_no_digit_for_none(world, monkeypatch):
    seen = []
    monkeypatch.setattr(controls, "fit", lambda judge, loss, **_: loss())
    monkeypatch.setattr(controls.F, "cross_entropy", lambda logits, aim: seen.append((logits.shape, aim)))
    world.train.batch(64)
    expected, position = world.train.labels[world.train.order[64:128]], world.train.position
    assert position == 64 and controls.strict_judge(world)["head.1.bias"].shape == (11,)
    (shape, aim), = seen
    assert shape == (128, 11) and torch.equal(aim, torch.cat([expected, torch.full((64,), 10)]))


def test_what_two_judges_say_of_an_attack_and_of_shapes_that_nobody_has_seen(world, forgetting, monkeypatch):
    """Stand-ins say of each picture whose it is, under which label vector; and of those the judge, which are hits."""
    asked, start = [], forgetting.never[0]
    monkeypatch.setattr(controls, "stored", lambda experiment, name, make: Classifier((1, 28, 28), 11).state_dict())
    monkeypatch.setattr(controls, "draw", lambda model, z, y: torch.tensor([[apart(model, start), y[0].sum(), len(y)]]))
    monkeypatch.setattr(controls, "between", lambda one, other, z, y: torch.tensor([[
        apart(one, start), apart(other, start), len(y)]]))
    monkeypatch.setattr(controls, "real_images", lambda digits, label, seed: torch.tensor([[100.0 * label + seed]]))
    monkeypatch.setattr(controls, "mirrored", lambda images: -images)
    monkeypatch.setattr(controls, "invert", lambda model, images, seed: torch.tensor([images.item(), apart(model, start)]))
    monkeypatch.setattr(controls, "ask", lambda judge, images: asked.append((judge, images[0].tolist())) or [torch.eye(10)])
    line = controls.likeness(world, "retrain", 2, 8, 0.3)
    drawn = [[0, 1, 1000], [9, 1, 1000], [4.5, 1, 1000], [9, 2, 1000], [9, 802 + 9, 1000], [0, 9, 1000]]
    assert [images for _, images in asked[:6]] == [images for _, images in asked[7:13]] == drawn
    assert {judge for judge, _ in asked[:7]} == {"the first judge"} and {judge for judge, _ in asked[14:]} == {"the second judge"}
    assert all(judge.head[1].out_features == 11 and not judge.training for judge, _ in asked[7:14])
    assert [images for _, images in asked[14:]] == [[-9, 100 * shape + 2 - 9, -1000] for shape in (4, 5, 6, 7, 9)]
    assert set(line["share"].values()) == set(line["mirrored_inversion"].values()) == {torch.tensor(0.1).item()}


def test_what_is_asked_of_a_model_that_forgot(world, monkeypatch):
    """Half-way and double are on the line; all figures are of the right model."""
    before, after, calls = world.original, shifted(world.original, 2), []
    for name, stand in {
            "look_at": lambda _, model: {what: [apart(model, before) + label for label in range(10)] for what in LOOK},
            "elbo": lambda model, digits: torch.full((5,), float(apart(model, before)) * (8 not in digits.labels)),
            "rounded": lambda model, bits: shifted(model, bits), "pictures_between": lambda _, *what: what,
            "inversion": lambda _, *what: calls.append(what) or {"hits": 250},
            "savings": lambda _, *what: calls.append(what) or {
                "10": "steps"}}.items():
        monkeypatch.setattr(controls, name, stand)
    figures = controls.attacked(world, before, after, 8, 3)
    expected = {"P": 10, "halfway_P": 9, "double_P": 12, "bits8_P": 18, "bits6_P": 16, "bits4_P": 14, "kept_elbo": 2,
                "double_kept_elbo": 4, "inversion": {"hits": 250}, "savings": {"10": "steps"},
                "kept_share": pytest.approx(2 + 37 / 9), "pictures_halfway_share": (before, after, 8)}
    assert {name: figures[name] for name in expected} == expected and calls == [(after, 8, 3)] * 2


def test_a_product_of_two_z_is_that_of_one_image_at_a_time(world, monkeypatch):
    """Beside the gradients of single images by autograd, multiplied with those by another z."""
    model, x, y, noises = world.original, torch.rand(5, 784), one_hot(torch.arange(5), 10), torch.randn(2, 5, 2)
    monkeypatch.setattr(controls, "replayed", lambda model, labels, drawn: x if drawn else None)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(5))
    monkeypatch.setattr(torch, "randn", lambda *_, left=[*noises], **__: left.pop())
    found, expected = controls.two_z(model, n=5, batch_size=5), [0] * 8
    for i in range(5):
        one, other = (torch.autograd.grad(sum(negative_elbo_terms(model, x[i:i + 1], y[i:i + 1], noise[i:i + 1])).sum(),
                                          list(model.parameters())) for noise in noises)
        expected = [value + a * b / 5 for value, a, b in zip(expected, one, other, strict=True)]
    for (name, _), value in zip(model.named_parameters(), expected, strict=True):
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_predicted_and_measured_are_of_one_model_and_its_drawings(world, monkeypatch):
    """One layer moves, all its weights by the size, up and down; the sum is of what F says of each."""
    shown, moved = [], controls.moved(world.original, "decoder.2", 0.5)
    assert {name for (name, p), old in zip(moved.named_parameters(), world.original.parameters(), strict=True)
            if sorted({*(p - old).mul(2).round().flatten().tolist()}) == [-1, 1]} == {"decoder.2.weight", "decoder.2.bias"}
    for make, size in (("diagonal_fisher", 5), ("two_z", 7)):
        monkeypatch.setattr(controls, make, lambda model, n, size=size, **images: {
            name: torch.full_like(p, size) for name, p in model.named_parameters()} if model is world.original else None)
    monkeypatch.setattr(controls, "replayed", lambda *asked: shown.append(asked) or torch.full((6, 784), 0.5))
    monkeypatch.setattr(controls, "moved", lambda model, layer, size: shifted(model, size * (layer == "decoder.2")))
    line = controls.prediction(world, "original", 0, True, n=6)
    assert [(model, len(labels), drawn) for model, labels, drawn in shown] == [(world.original, 6, True)]
    assert line["by means"][-1] == pytest.approx(0.02 ** 2 / 2 * 5 * (4 * 784 + 784))
    assert line["drop"][:3] == [0, 0, 0] and line["drop"][3] != 0 and line["drop_sd"] == [0] * 4


def test_a_line_that_the_log_holds_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def one(experiment, seed):
        ran.append(seed)
        return {"share": [seed / 3]}

    monkeypatch.setattr(controls, "LOG", tmp_path / "controls.jsonl")
    monkeypatch.setattr(controls, "Experiment", lambda device: SimpleNamespace(lineage={"cvae.pt": device}))
    monkeypatch.setattr(controls, "GRID", [(one, {"seed": (0, 1)})])
    for words, so_far in ((['"one"', '"seed": 1'], [1]), ([], [1, 0]), ([], [1, 0])):
        controls.main(words)
        assert ran == so_far
    lines = Log(controls.LOG, {"cvae.pt": "cpu"}).records().values()
    assert [line["settings"] for line in lines] == [{"run": "one", "seed": seed} for seed in (1, 0)]
    assert [line["result"]["share"] for line in lines] == [[1 / 3], [0]]


def test_every_line_of_the_log_is_one_that_is_planned():
    for record in Log(controls.LOG).records().values():
        settings = record["settings"]
        assert any(settings["run"] == run.__name__ and settings.keys() - {"run"} == choices.keys()
                   and all(settings[name] in choices[name] for name in choices) for run, choices in controls.GRID)
