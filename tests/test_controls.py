"""The controls: which model each run takes, with which labels, images and counts, by stand-ins; F beside brute force."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from amnesia import diagonal_fisher, negative_elbo_terms, one_hot
from amnesia_studies import controls

WITHOUT = [1, 2, 3, 4, 5, 6, 7, 9]


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
    """By how much each weight of one model is larger."""
    differences = torch.cat([(p - q).flatten() for p, q in zip(one.parameters(), other.parameters(), strict=True)]).detach()
    assert differences.std() < 1e-6
    return round(differences.mean().item(), 4)


@pytest.mark.parametrize(("kind", "labels", "of_training"), [("original", [*range(10)], 2), ("retrain", WITHOUT, 102)])
def test_where_a_control_starts(world, monkeypatch, kind, labels, of_training):
    trained, before = [], deepcopy(world.original)

    def train(task, digits):
        trained.append((task.seed, digits.labels.unique().tolist()))
        return shifted(task.original, 1)

    monkeypatch.setattr(controls, "train_from_scratch", train)
    monkeypatch.setattr(controls, "retrain", lambda task: train(task, task.train.only(task.kept.tolist())))
    monkeypatch.setattr(controls, "diagonal_fisher", lambda model, n: {
        "of": model.decoder[0].weight.detach(), "n": torch.tensor(n), "seed": torch.tensor(torch.initial_seed())})
    for _ in range(2):                                      # the second time from the workspace
        model, fim = controls.origin(world, kind, 2, [0, 8])
        assert trained == [(of_training, labels)] and apart(model, before) == 1
        assert torch.equal(fim["of"], model.decoder[0].weight) and (fim["n"], fim["seed"]) == (50_000, 2)
    assert apart(world.original, before) == 0               # the Experiment itself is as it was
    assert controls.origin(world, "original", 0, [0]) == (world.original, world.fim)


@pytest.fixture
def forgetting(world, monkeypatch):
    """What each amnesia is given: (model, F, label, seed, lam). Its models have weights larger by 1 + label; those that never
    knew are larger by 10 than the original, with an F of their own."""
    asked, never = [], (shifted(world.original, 10), {name: f + 1 for name, f in world.fim.items()})

    def amnesia(task, lam):
        asked.append((task.original, task.fim, task.forgotten.tolist(), task.seed, lam))
        return shifted(task.original, 1 + task.forgotten.item())

    monkeypatch.setattr(controls, "distilled", amnesia)
    monkeypatch.setattr(controls, "origin", lambda experiment, kind, seed, forget=(0,): (
        (world.original, world.fim) if kind == "original" else never))
    monkeypatch.setattr(controls, "attacked", lambda experiment, before, after, label, seed: {
        "before": before, "moved": apart(after, before), "label": label, "seed": seed})
    return SimpleNamespace(asked=asked, never=never)


def test_amnesia_of_a_model_that_never_knew(world, forgetting):
    model, fim = forgetting.never
    assert controls.amnesia(world, "retrain", 2, 8, 0.3) == {"before": model, "moved": 9, "label": 8, "seed": 2}
    assert forgetting.asked == [(model, fim, [8], 2, 0.3)]


@pytest.mark.parametrize("matched", ["", "decoder"])
def test_springs_are_scaled_to_the_defaults_sum(world, forgetting, monkeypatch, matched):
    """Two runs in one process, for the first may not leave its springs to the second."""
    other = {name: torch.randn_like(p) for name, p in world.original.named_parameters()}
    monkeypatch.setattr(controls, "information", lambda model, kind: other)
    for _ in range(2):
        line = controls.springs(world, "original", 0, 0, "drawn", matched, 0.3)
        model, fim, *how = forgetting.asked.pop()
        assert (model, how, line["before"]) == (world.original, [[0], 0, 0.3], model) and min(f.min() for f in fim.values()) == 0
        total = [sum(f.sum() for name, f in some.items() if name.startswith(matched)) for some in (world.fim, fim)]
        torch.testing.assert_close(*total)
        torch.testing.assert_close(fim["decoder.0.bias"], line["scaled"] * other["decoder.0.bias"].clamp_min(0))


def test_the_average_is_of_two_that_forgot_one_each(world, forgetting, monkeypatch):
    model, fim = forgetting.never
    monkeypatch.setattr(controls, "look_at", lambda experiment, one: apart(one, model))
    monkeypatch.setattr(controls, "pictures_between", lambda experiment, one, other, label: (
        apart(one, model), apart(other, model), label))
    assert controls.average(world, "retrain", 1, 0.3) == {
        "models": [1, 9], "average": 5, "pictures_share": [(1, 9, 0), (1, 9, 8)]}
    assert forgetting.asked == [(model, fim, [0], 1, 0.3), (model, fim, [8], 1, 0.3)]


def test_what_is_asked_of_a_model_that_forgot(world, monkeypatch):
    """Half-way and double are on the line; inversion sees 100 images of the label; all figures are of the right model."""
    before, after, calls = world.original, shifted(world.original, 2), []
    stands = {"look_at": lambda _, model: {name: [apart(model, before) + label for label in range(10)]
                                           for name in ("share", "P", "H", "contrast")},
              "elbo": lambda model, digits: torch.full((5,), float(apart(model, before)) * (8 not in digits.labels)),
              "rounded": lambda model, bits: shifted(model, bits * 10), "pictures_between": lambda _, *what: what,
              "invert": lambda *images, seed: calls.append((*images, seed)) or torch.full((10,), 0.5),
              "draw": lambda model, z, y: calls.append((model, z, y)) or "drawn",
              "judged": lambda _, images, label: {"hits": 250 * (images == "drawn" and label == 8)},
              "all_savings": lambda _, *what: calls.append(what) or {
                  "10": {"digit": 30, "mirrored": {"4": 10, "5": 20}}, "100": {"digit": 5, "mirrored": {"4": 10, "5": 10}}}}
    for name, stand in stands.items():
        monkeypatch.setattr(controls, name, stand)
    figures = controls.attacked(world, before, after, 8, 3)
    assert [figures[f"{name}share"] for name in ("", "halfway_", "double_", "bits8_", "bits6_", "bits4_")] == [
        10, 9, 12, 90, 70, 50]
    assert (figures["halfway_H"], figures["bits4_contrast"], figures["kept_share"]) == (9, 50, 2 + (45 - 8) / 9)
    assert (figures["kept_elbo"], figures["double_kept_elbo"], figures["inversion"]) == (2, 4, 0.25)
    assert (figures["savings_10"], figures["savings_100"], figures["mirrored_10"]) == (2, 0.5, [10, 20])
    assert figures["pictures_halfway_share"] == (before, after, 8)
    (model, images, seed), (drawer, z, y), savings = calls
    of_label = world.train.only([8]).images.float() / 255
    assert (model, seed, drawer, savings) == (after, 3, after, (after, 8, 3, 1.0))
    assert len(images) == len(of_label) and (images[:, None] == of_label).all(2).any(1).all()
    assert z.shape == (1000, 2) and y.shape == (1000, 10) and (y == 0.5).all()


@pytest.mark.parametrize(("kind", "latents"), [("drawn", 1), ("drawn, two z", 2)])
def test_information_is_that_of_one_image_at_a_time(world, monkeypatch, kind, latents):
    """Beside the gradients of single images by autograd: squared, or multiplied with those by another z."""
    model, x, noises = world.original, torch.rand(5, 784), torch.randn(latents, 5, 2)
    monkeypatch.setattr(controls, "replay", lambda model, labels, drawn: x if drawn else None)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(5))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noises.flatten(0, 1))
    found = controls.information(model, kind, n=5, batch_size=5)
    for name, p in model.named_parameters():
        expected = torch.zeros_like(p)
        for i in range(5):
            one, gradients = slice(i, i + 1), []
            for noise in noises:
                cost = sum(negative_elbo_terms(model, x[one], one_hot(torch.arange(5), 10)[one], noise[one])).sum()
                gradients += torch.autograd.grad(cost, p)
            expected += gradients[0] * gradients[-1] / 5
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_means_and_one_z_are_notebook_2s(world):
    found = []
    for of in (lambda: diagonal_fisher(world.original, 1000), lambda: controls.information(world.original, "means", 1000)):
        torch.manual_seed(3)
        found.append(of())
    torch.testing.assert_close(*found)


def test_one_layer_moves_by_a_size_up_or_down(world):
    model = controls.moved(world.original, "decoder.2", 0.5)
    for (name, p), old in zip(model.named_parameters(), world.original.parameters(), strict=True):
        moves = {-0.5, 0.5} if name.startswith("decoder.2") else {0.0}
        assert {round(move, 4) for move in (p - old).flatten().tolist()} <= moves and (len(moves) == 1 or (p > old).any())


def test_predicted_and_measured_are_of_one_model_and_its_drawings(world, monkeypatch):
    shown = []
    monkeypatch.setattr(controls, "information", lambda model, kind: {
        name: torch.full_like(p, 2.0 + len(kind)) for name, p in model.named_parameters()} if model is world.original else None)
    monkeypatch.setattr(controls, "replay", lambda model, labels, drawn: (
        shown.append((model, len(labels), drawn)) or torch.full((len(labels), 784), 0.5)))
    monkeypatch.setattr(controls, "moved", lambda model, layer, size: shifted(model, size * (layer == "decoder.2")))
    line = controls.prediction(world, "original", 0, True, n=6)
    assert shown == [(world.original, 6, True)] and (line["size"], line["images"]) == (0.02, 6)
    assert line["layers"] == ["encoder.0", "encoder.2", "decoder.0", "decoder.2"]
    assert line["by means"][-1] == pytest.approx(0.02 ** 2 / 2 * 7 * (4 * 784 + 784))
    assert line["drop"][:3] == [0, 0, 0] and line["drop"][3] != 0 and line["drop_sd"] == [0] * 4


def test_a_line_that_the_log_holds_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def one(experiment, seed):
        ran.append(("one", seed))
        return {"share": [seed / 3]}

    def two(experiment, seed):
        ran.append(("two", seed))
        return {"share": {"0": 1}}

    monkeypatch.setattr(controls, "LOG", tmp_path / "controls.jsonl")
    controls.LOG.touch()
    monkeypatch.setattr(controls, "Experiment", lambda device: device)
    monkeypatch.setattr(controls, "GRID", {one: {"seed": (0, 1)}, two: {"seed": [1]}})
    for words, runs in ((['"one"'], [("one", 0), ("one", 1)]), ([], [("two", 1)]), ([], [])):
        controls.main(words)
        assert ran == runs
        ran.clear()
    lines = [json.loads(line) for line in controls.LOG.read_text().splitlines()]
    assert [(line["run"], line["seed"], line["share"]) for line in lines] == [
        ("one", 0, [0]), ("one", 1, [0.3333]), ("two", 1, {"0": 1})]
    assert all(line["seconds"] >= 0 and line["torch"] == torch.__version__ for line in lines)


def test_the_log_s_lines_are_among_those_that_are_planned():
    settings = {"run", "original", "seed", "label", "lam", "drawn", "importance", "matched"}
    planned = {run.__name__: choices for run, choices in controls.GRID.items()}
    for line in map(json.loads, controls.LOG.read_text().splitlines()):
        choices = planned[line["run"]]
        assert set(choices) == settings & set(line) - {"run"} and all(line[name] in choices[name] for name in choices)
