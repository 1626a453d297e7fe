"""The controls: which model each run takes, with which labels, images and counts, by stand-ins; F beside brute force."""

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from watching import flat

from amnesia import Classifier, negative_elbo_terms, one_hot
from amnesia_studies import controls
from amnesia_studies.logs import Log
from amnesia_studies.methods import Task


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
    changes = flat(one.parameters()) - flat(other.parameters())
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
    never knew. What is measured of a model is by how much its weights are larger than those."""
    asked, never = [], (shifted(world.original, 10), {name: f + 1 for name, f in world.fim.items()})

    def method(task, **options):
        asked.append((task.original, task.fim, task.forgotten.tolist(), task.seed, options))
        return shifted(task.original, 1 + task.forgotten.item())

    for name, stand in {
            "METHODS": {"distilled amnesia": method, "another": partial(method, named="another")},
            "origin": lambda _, kind, seed, forget=(0,): (world.original, world.fim) if kind == "original" else never,
            "attacked": lambda _, before, after, *what: {"figures": (before, apart(after, before), *what)},
            "look_at": lambda _, one: apart(one, never[0]),
            "pictures_between": lambda _, one, other, label: (apart(other, one), label)}.items():
        monkeypatch.setattr(controls, name, stand)
    return SimpleNamespace(asked=asked, never=never)


@pytest.mark.parametrize(("options", "used"), [({"lam": 0.0}, {"lam": 0.0}), ({"name": "another"}, {"named": "another"})])
def test_amnesia_of_a_model_that_never_knew(world, forgetting, options, used):
    assert controls.amnesia(world, "retrain", 2, 8, **options) == {"figures": (forgetting.never[0], 9, 8, 2)}
    assert forgetting.asked == [(*forgetting.never, [8], 2, used)]


@pytest.mark.parametrize(("kind", "matched"), [("drawn", ""), ("identity", "decoder")])
def test_springs_are_scaled_to_the_defaults_sum(world, forgetting, monkeypatch, kind, matched):
    other = {name: torch.randn_like(p) for name, p in world.original.named_parameters()}
    monkeypatch.setattr(controls, "diagonal_fisher", lambda model, n, images: other)
    line = controls.springs(world, "original", 0, 0, kind, matched, 0.3)
    model, fim, *how = forgetting.asked.pop()
    assert (model, how, line["figures"]) == (world.original, [[0], 0, {"lam": 0.3}], (model, 1, 0, 0))
    for name, f in fim.items():
        shape = torch.ones_like(f) if kind == "identity" else other[name].clamp_min(0)
        torch.testing.assert_close(f, line["scaled"] * shape)
    assert torch.isclose(*(sum(f.sum() for key, f in fs.items() if key.startswith(matched)) for fs in [world.fim, fim]))


def test_the_average_is_of_two_that_forgot_one_each(world, forgetting):
    assert controls.average(world, "retrain", 1, 0.3) == {"models": [1, 9], "average": 5, "pictures_share": [(8, 0), (8, 8)]}
    assert forgetting.asked == [(*forgetting.never, [label], 1, {"lam": 0.3}) for label in (0, 8)]


def test_one_copy_is_taught_a_0_the_other_an_8(world, forgetting, monkeypatch):
    """And what each is not taught goes on to mean noise."""
    told = []
    monkeypatch.setattr(controls, "nats", lambda model, x, y: told.append((model, *y.argmax(1).unique().tolist())) or x.sum(1))
    monkeypatch.setattr(Task, "minimise", lambda task, model, loss, *_, **__: loss() and shifted(
        model, 1 + task.forgotten.item()))
    assert controls.taught(world, "oracle", 1)["models"] == [9, 1]
    assert [labels for _, *labels in told] == [[0, 1, 2, 3, 4, 5, 6, 7, 9], [8], [*range(1, 10)], [0]]
    assert all(apart(model, forgetting.never[0]) == 0 for model, *_ in told)


def test_what_two_judges_say_of_an_attack_and_of_shapes_that_nobody_has_seen(world, forgetting, monkeypatch):
    """Stand-ins say of each picture whose it is, under which label vector."""
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
            "look_at": lambda _, model: {what: [apart(model, before) + label for label in range(10)]
                                         for what in ("share", "P", "H", "contrast")},
            "elbo": lambda model, digits: torch.full((5,), float(apart(model, before)) * (8 not in digits.labels)),
            "rounded": shifted, "pictures_between": lambda _, *what: what,
            "inversion": lambda _, *what: calls.append(what) or "hits",
            "savings": lambda _, *what: calls.append(what) or "steps"}.items():
        monkeypatch.setattr(controls, name, stand)
    figures = controls.attacked(world, before, after, 8, 3)
    expected = {"P": 10, "halfway_P": 9, "double_P": 12, "bits8_P": 18, "bits6_P": 16, "bits4_P": 14, "kept_elbo": 2,
                "double_kept_elbo": 4, "inversion": "hits", "savings": "steps",
                "kept_share": pytest.approx(2 + 37 / 9), "pictures_halfway_share": (before, after, 8)}
    assert {name: figures[name] for name in expected} == expected and calls == [(after, 8, 3)] * 2


def test_a_product_of_two_z_is_that_of_one_image_at_a_time(world, monkeypatch):
    """Beside the gradients of single images by autograd, multiplied with those by another z."""
    model, x, y, noises = world.original, torch.rand(5, 784), one_hot(torch.arange(5), 10), torch.randn(2, 5, 2)
    monkeypatch.setattr(controls, "replayed", lambda model, labels, drawn: x if drawn else None)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(5))
    monkeypatch.setattr(torch, "randn", lambda *_, left=[*noises], **__: left.pop())
    found, expected = controls.two_z(model, n=5, batch_size=5), 0
    for i in range(5):
        one, other = (flat(torch.autograd.grad(sum(negative_elbo_terms(model, x[i:i + 1], y[i:i + 1], noise[i:i + 1])).sum(),
                                               list(model.parameters()))) for noise in noises)
        expected = expected + one * other / 5
    assert list(found) == [name for name, _ in model.named_parameters()]
    torch.testing.assert_close(flat(found.values()), expected, rtol=1e-4, atol=1e-5)


def test_predicted_and_measured_are_of_one_model_and_its_drawings(world, monkeypatch):
    """One layer is moved, up or down, here up; the sum is of what F says of each of its weights."""
    change = flat(controls.moved(world.original, "decoder.2", 0.5).parameters()) - flat(world.original.parameters())
    assert {*change[-5 * 784:].mul(2).round().tolist()} == {-1, 1} and not change[:-5 * 784].any()
    monkeypatch.setattr(controls, "information", lambda _, of, model, kind: {
        name: torch.full_like(p, len(kind)) for name, p in model.named_parameters()} if model is world.original else None)
    monkeypatch.setattr(controls, "replayed", lambda *of: torch.full((6, 784), 0.5) if of[::2] == (world.original, True) else 0)
    monkeypatch.setattr(controls, "moved", lambda model, layer, size: shifted(model, size * (layer == "decoder.2")))
    line = controls.prediction(world, "original", 0, True, n=6)
    assert line["by means"][-1] == pytest.approx(0.02 ** 2 / 2 * len("means") * (4 * 784 + 784))
    assert line["drop"][:3] == [0, 0, 0] and line["drop"][3] != 0 and line["drop_sd"] == [0] * 4


def test_every_line_of_the_log_is_one_that_is_planned():
    for record in Log(controls.LOG).records().values():
        settings = record["settings"]
        assert any(settings["run"] == run.__name__ and settings.keys() - {"run"} == choices.keys()
                   and all(settings[name] in choices[name] for name in choices) for run, choices in controls.GRID)
