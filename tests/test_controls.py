"""The controls: which model each run takes, with which labels, images and counts, by stand-ins; F beside brute force."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from amnesia import negative_elbo_terms, one_hot
from amnesia_studies import controls

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


@pytest.mark.parametrize(("kind", "missing", "of_training"), [("original", [], 2), ("retrain", [0, 8], 102)])
def test_where_a_control_starts(world, monkeypatch, kind, missing, of_training):
    trained, before = [], deepcopy(world.original)
    monkeypatch.setattr(controls, "train_from_scratch", lambda task, digits: (
        trained.append((task.seed, digits.labels.unique().tolist())) or shifted(task.original, 1)))
    monkeypatch.setattr(controls, "retrain", lambda task: controls.train_from_scratch(task, task.train.only([*task.kept])))
    monkeypatch.setattr(controls, "diagonal_fisher", lambda model, n: {
        "of": model.decoder[0].weight.detach(), "n and seed": torch.tensor([n, torch.initial_seed()])})
    for _ in range(2):                                      # the second time from the workspace
        model, fim = controls.origin(world, kind, 2, [0, 8])
        assert trained == [(of_training, sorted({*range(10)} - {*missing}))] and apart(model, before) == 1
        assert torch.equal(fim["of"], model.decoder[0].weight) and fim["n and seed"].tolist() == [50_000, 2]
    assert apart(world.original, before) == 0               # the Experiment itself is as it was
    assert controls.origin(world, "original", 0, [0]) == (world.original, world.fim)


@pytest.fixture
def forgetting(world, monkeypatch):
    """asked: of each amnesia (model, F, labels, seed, lam); its weights are larger by 1 + label. never: the (model, F) that
    never knew."""
    asked, never = [], (shifted(world.original, 10), {name: f + 1 for name, f in world.fim.items()})
    monkeypatch.setattr(controls, "distilled", lambda task, lam: (
        asked.append((task.original, task.fim, task.forgotten.tolist(), task.seed, lam))
        or shifted(task.original, 1 + task.forgotten.item())))
    monkeypatch.setattr(controls, "origin", lambda experiment, kind, seed, forget=(0,): (
        (world.original, world.fim) if kind == "original" else never))
    monkeypatch.setattr(controls, "attacked", lambda experiment, before, after, label, seed: {
        "figures": (before, apart(after, before), label, seed)})
    return SimpleNamespace(asked=asked, never=never)


def test_amnesia_of_a_model_that_never_knew(world, forgetting):
    assert controls.amnesia(world, "retrain", 2, 8, 0.3) == {"figures": (forgetting.never[0], 9, 8, 2)}
    assert forgetting.asked == [(*forgetting.never, [8], 2, 0.3)]


@pytest.mark.parametrize("matched", ["", "decoder"])
def test_springs_are_scaled_to_the_defaults_sum(world, forgetting, monkeypatch, matched):
    other = {name: torch.randn_like(p) for name, p in world.original.named_parameters()}
    monkeypatch.setattr(controls, "information", lambda model, kind: other)
    for _ in range(2):                                      # the first leaves its springs not to the second
        line = controls.springs(world, "original", 0, 0, "drawn", matched, 0.3)
        model, fim, *how = forgetting.asked.pop()
        assert (model, how, line["figures"]) == (world.original, [[0], 0, 0.3], (model, 1, 0, 0))
        assert all(torch.allclose(f, line["scaled"] * other[name].clamp_min(0)) for name, f in fim.items())
        assert torch.isclose(*(sum(f.sum() for key, f in fs.items() if key.startswith(matched)) for fs in [world.fim, fim]))


def test_the_average_is_of_two_that_forgot_one_each(world, forgetting, monkeypatch):
    monkeypatch.setattr(controls, "look_at", lambda experiment, one: apart(one, forgetting.never[0]))
    monkeypatch.setattr(controls, "pictures_between", lambda experiment, one, other, label: (apart(other, one), label))
    assert controls.average(world, "retrain", 1, 0.3) == {"models": [1, 9], "average": 5, "pictures_share": [(8, 0), (8, 8)]}
    assert forgetting.asked == [(*forgetting.never, [0], 1, 0.3), (*forgetting.never, [8], 1, 0.3)]


def test_what_is_asked_of_a_model_that_forgot(world, monkeypatch):
    """Half-way and double are on the line; all figures are of the right model."""
    before, after, calls = world.original, shifted(world.original, 2), []
    for name, stand in {
            "look_at": lambda _, model: {what: [apart(model, before) + label for label in range(10)] for what in LOOK},
            "elbo": lambda model, digits: torch.full((5,), float(apart(model, before)) * (8 not in digits.labels)),
            "rounded": lambda model, bits: shifted(model, bits), "pictures_between": lambda _, *what: what,
            "inversion": lambda _, *what: calls.append(what) or {"hits": 250},
            "savings": lambda _, *what: calls.append(what) or {
                "10": {"digit": 30, "mirrored": {"4": 10, "5": 20}}}}.items():
        monkeypatch.setattr(controls, name, stand)
    figures = controls.attacked(world, before, after, 8, 3)
    expected = {"P": 10, "halfway_P": 9, "double_P": 12, "bits8_P": 18, "bits6_P": 16, "bits4_P": 14, "kept_elbo": 2,
                "double_kept_elbo": 4, "inversion": 0.25, "savings_10": 2, "digit_10": 30, "mirrored_10": [10, 20],
                "kept_share": pytest.approx(2 + 37 / 9), "pictures_halfway_share": (before, after, 8)}
    assert {name: figures[name] for name in expected} == expected and calls == [(after, 8, 3)] * 2


@pytest.mark.parametrize("kind", ["means", "drawn", "drawn, two z"])
def test_information_is_that_of_one_image_at_a_time(world, monkeypatch, kind):
    """Beside the gradients of single images by autograd: squared, or multiplied with those by another z."""
    model, x, y = world.original, torch.rand(5, 784), one_hot(torch.arange(5), 10)
    noises = torch.randn(2 if kind == "drawn, two z" else 1, 5, 2)
    monkeypatch.setattr(controls, "replayed", lambda model, labels, drawn: x if drawn == (kind != "means") else None)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(5))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noises.flatten(0, 1))
    found, expected = controls.information(model, kind, n=5, batch_size=5), [0] * 8
    for i in range(5):
        one, other = (torch.autograd.grad(sum(negative_elbo_terms(model, x[i:i + 1], y[i:i + 1], noise[i:i + 1])).sum(),
                                          list(model.parameters())) for noise in (noises[0], noises[-1]))
        expected = [value + a * b / 5 for value, a, b in zip(expected, one, other, strict=True)]
    for (name, _), value in zip(model.named_parameters(), expected, strict=True):
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_predicted_and_measured_are_of_one_model_and_its_drawings(world, monkeypatch):
    """One layer moves, all its weights by the size, up and down; the sum is of what F says of each."""
    shown, moved = [], controls.moved(world.original, "decoder.2", 0.5)
    assert {name for (name, p), old in zip(moved.named_parameters(), world.original.parameters(), strict=True)
            if sorted({*(p - old).mul(2).round().flatten().tolist()}) == [-1, 1]} == {"decoder.2.weight", "decoder.2.bias"}
    monkeypatch.setattr(controls, "information", lambda model, kind: {
        name: torch.full_like(p, len(kind)) for name, p in model.named_parameters()} if model is world.original else None)
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
    monkeypatch.setattr(controls, "GRID", {one: {"seed": (0, 1)}})
    controls.LOG.touch()
    for words, so_far in ((['"one"', '"seed": 1'], [1]), ([], [1, 0]), ([], [1, 0])):
        controls.main(words)
        assert ran == so_far
    lines = [json.loads(line) for line in controls.LOG.read_text().splitlines()]
    assert [(line["run"], line["seed"], line["share"]) for line in lines] == [("one", 1, [0.3333]), ("one", 0, [0])]
    assert all(line["seconds"] >= 0 and line["torch"] == torch.__version__ for line in lines)
    assert all(line["lineage"] == {"cvae.pt": "cpu"} for line in lines)


def test_every_line_of_the_log_is_one_that_is_planned():
    for line in map(json.loads, controls.LOG.read_text().splitlines()):
        planned = controls.GRID[getattr(controls, line["run"])]
        assert all(line[name] in planned[name] for name in planned)
