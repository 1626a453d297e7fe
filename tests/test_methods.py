"""The methods of the studies, term by term: what a loss is worth and where it pulls, against torch.distributions in float64 on
the very images, labels and latents that it drew; and what each method alone promises."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import watching
from conftest import RELEASED
from watching import FORGOTTEN, KEPT, assert_drawn_alike, assert_terms, elbo_terms, flat, moved, nll

from amnesia import CVAE, Saved, diagonal_fisher
from amnesia_studies import methods
from amnesia_studies.methods import CEILING, METHODS, Task, inner_inversion, noise_pairs, noise_part_way, some
from amnesia_studies.weights import mixed


def one_hot(labels):
    return torch.nn.functional.one_hot(labels, 10).float()


@pytest.fixture
def studied(digits, monkeypatch):
    """studied(method, **options): what its last call of minimise() was given, on a model on its way: "terms" of the loss;
    "original" and "model", Watched; "task"; "told", the Task that trains; "choices"."""
    def capture(method, **options):
        torch.manual_seed(0)
        original, caught = moved(CVAE(latent_dim=4, hidden=(32, 16)), by=2.0), []
        fim = {name: torch.rand_like(p) for name, p in original.named_parameters()}
        task = Task(original, fim, digits[0], FORGOTTEN, KEPT, recipe={"batch_size": 128, "learning_rate": 0.002})
        monkeypatch.setattr(methods, "inner_inversion", lambda cvae, task, attackers: iter(
            lambda: attackers * cvae.decoder[-1].bias.sum(), None))
        monkeypatch.setattr(Task, "minimise", lambda self, model, loss, steps=None, **choices: (
            caught.append((self, model, loss, {"steps": steps, **choices})) or model))
        method(task, **options)
        told, cvae, loss, choices = caught[-1]
        assert cvae is not original
        moved(cvae, by=0.3)
        watched = [watching.Watched(original), watching.Watched(cvae)]
        torch.manual_seed(3)
        return SimpleNamespace(terms=loss(), task=task, told=told, choices=choices, original=watched[0], model=watched[1])

    return capture


def drawn_as(original, x, share):
    """The labels of images (n, 784) that the frozen copy made, a `share` drawn pixel by pixel, the rest means."""
    (z, y, logits), = (call for call in original.decoded if len(call[0]) == len(x))
    n, mean = int(share * len(x)), logits.sigmoid()
    drawn = x[:n]
    assert z.mean().abs() < 0.2 and 0.8 < z.std() < 1.2 and torch.allclose(x[n:], mean[n:], atol=1e-6)
    assert set(drawn.unique().tolist()) <= {0, 1}
    if n:                                                               # of a regression on the means, the line is y = x
        centred = mean[:n] - mean[:n].mean()
        assert (drawn * centred).sum() / centred.square().sum() == pytest.approx(1, abs=0.05)
    return y.argmax(1)


# What a term is worth, given what studied() caught: a function each, which also looks at what was drawn

def noise(caught, n=48):
    x, y, *_ = caught.model.told(caught.model.encoded, FORGOTTEN)
    watching.assert_noise_pairs(x, y)
    assert len(x) == n
    return sum(elbo_terms(caught.model, FORGOTTEN)).mean()


def grey(caught):
    x, *_ = caught.model.told(caught.model.encoded, FORGOTTEN)
    assert (x == 0.5).all() and x.shape == (48, 784)
    return sum(elbo_terms(caught.model, FORGOTTEN)).mean()


def weighed(cost, weight):
    """What is to rise rises to the ceiling."""
    assert weight > 0 or cost.min() < CEILING
    return weight * (cost if weight > 0 else cost.clamp_max(CEILING)).mean()


def replayed(caught, labels=KEPT, n=384, share=0.75, weight=1.0, of=None):
    """of: the labels of the images, where those are others than they are told."""
    x, y, *_ = caught.model.told(caught.model.encoded, labels)
    asked = drawn_as(caught.original, x, share)
    assert_drawn_alike(y, labels)
    assert_drawn_alike(one_hot(asked), labels if of is None else of)
    assert len(x) == n and torch.equal(asked, y.argmax(1)) == (of is None)
    return weighed(sum(elbo_terms(caught.model, labels)), weight)


def real(caught, labels, n, weight):
    x, y, *_ = caught.model.told(caught.model.encoded, labels)
    own = {label: {row.numpy().tobytes() for row in caught.task.train.only([label]).images} for label in labels.tolist()}
    pixels = (255 * x).round().byte()
    assert all(row.numpy().tobytes() in own[label] for row, label in zip(pixels, y.argmax(1).tolist(), strict=True))
    assert len(x) == n
    return weighed(sum(elbo_terms(caught.model, labels)), weight)


def distils(caught, n=96, only=None):
    z, told, _ = caught.model.told(caught.model.decoded, KEPT)
    assert len(z) == n and torch.equal(caught.original.asked(z)[0], told)
    assert_drawn_alike(told, KEPT)
    decoder, encoder = watching.divergence(caught.original, caught.model, KEPT)
    return {"decoder": decoder, "encoder": encoder}.get(only, decoder + encoder).mean()


def steered(caught):
    """Each forgotten label is taught the answers to one kept label, and always the same."""
    z, told, _ = caught.model.told(caught.model.decoded, FORGOTTEN)
    taught = {*zip(told.argmax(1).tolist(), caught.original.asked(z)[0].argmax(1).tolist(), strict=True)}
    assert sorted(a for a, _ in taught) == [3, 8] and {b for _, b in taught} <= set(KEPT.tolist()) and len(told) == 48
    return sum(watching.divergence(caught.original, caught.model, FORGOTTEN)).mean()


def features(caught, labels, n):
    """The decoder's answers: to no label in particular for the forgotten, to their own for the kept."""
    z, told, _ = caught.model.told(caught.model.decoded, labels)
    asked, _ = caught.original.asked(z)
    torch.testing.assert_close(asked, one_hot(KEPT).mean(0).double().expand(n, -1) if labels is FORGOTTEN else told)
    assert_drawn_alike(told, labels)
    assert len(z) == n and z.mean().abs() < 0.2 and 0.8 < z.std() < 1.2
    return nll(caught.model.exact, z, told, caught.original.exact.decode(z, asked).sigmoid().detach()).mean()


def told_inside(caught):
    """What the inner adversary is made to say; what it says by itself is tested below."""
    return 6 * caught.model.exact.decoder[-1].bias.sum()


def springs(caught, lam, alike=False):
    mean = flat(caught.task.fim.values()).double().mean()
    fim = {name: mean.expand(f.shape) if alike else f for name, f in caught.task.fim.items()}
    return watching.spring(caught.original, caught.model, fim, lam)


SELECTIVE = {"forget": noise, "remember": replayed, "protect": partial(springs, lam=0.4)}
ASCENT = partial(replayed, labels=FORGOTTEN, n=48, weight=-1)
STRONGER = SELECTIVE | {"protect": partial(springs, lam=0.7)}
TERMS = [
    ("selective amnesia", {}, SELECTIVE),
    ("selective amnesia", {"drawn": 0.25, "gamma": 0.6}, SELECTIVE | {"remember": partial(replayed, share=0.25, weight=0.6)}),
    ("selective amnesia", {"importance": "identity"}, SELECTIVE | {"protect": partial(springs, lam=0.4, alike=True)}),
    ("selective amnesia", {"gamma": 0.0}, {"forget": noise, "protect": SELECTIVE["protect"]}),
    ("as published", {}, {"forget": partial(noise, n=256), "remember": partial(replayed, n=256, share=0.0),
                          "protect": partial(springs, lam=200 / 256)}),
    ("distilled amnesia", {}, {"forget": noise, "remember": distils, "protect": partial(springs, lam=0.3)}),
    ("distilled amnesia", {"only": "decoder", "lam": 0.7}, STRONGER | {"remember": partial(distils, only="decoder")}),
    ("distilled amnesia", {"only": "encoder", "lam": 0.0, "surrogate": "grey"},
     {"forget": grey, "remember": partial(distils, only="encoder")}),
    ("adversarial amnesia", {"attackers": 6}, {"forget": noise, "remember": partial(distils, n=384), "invert": told_inside}),
    ("naive", {}, SELECTIVE | {"forget": ASCENT}),
    ("NegGrad+", {}, {"forget": partial(real, labels=FORGOTTEN, n=48, weight=-1),
                      "remember": partial(real, labels=KEPT, n=384, weight=1)}),
    ("random label", {}, {"forget": partial(replayed, labels=FORGOTTEN, n=48, of=KEPT), "remember": replayed}),
    ("feature unlearning", {}, {"forget": partial(features, labels=FORGOTTEN, n=48),
                                "remember": partial(features, labels=KEPT, n=384)}),
    ("Distill, Forget, Repeat", {}, {"forget": steered, "remember": distils, "protect": partial(springs, lam=0.1, alike=True)})]


@pytest.mark.parametrize(("name", "options", "worth"), TERMS, ids=[f"{name} {options}" for name, options, _ in TERMS])
def test_each_term_is_worth_what_it_says(studied, name, options, worth):
    caught = studied(METHODS[name], **options)
    assert_terms(caught.terms, {term: of(caught) for term, of in worth.items()}, caught.model)


def test_as_published_has_the_papers_settings(studied):
    told = studied(METHODS["as published"]).told
    assert (told.steps, told.learning_rate, told.schedule) == (10_000, 1e-4, "constant")


def test_on_the_released_model_a_four_is_found_and_steered_to_a_nine(digits, monkeypatch):
    """And the attackers start anew when their life is over."""
    told = []
    monkeypatch.setattr(methods, "divergence", lambda *given: told.append(given[2:]) or next(given[1].parameters()).sum())
    original, kept = Saved(RELEASED / "cvae.pt").build(CVAE, "cpu"), torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])
    fim = {name: torch.ones_like(p) for name, p in original.named_parameters()}
    task = Task(original, fim, digits[0], torch.tensor([4]), kept, scale=0.0)
    METHODS["Distill, Forget, Repeat"](task)
    assert told[0][0].unique().tolist() == [9] and told[0][1].unique().tolist() == [4]
    torch.manual_seed(0)
    invert = inner_inversion(original, task, attackers=2, k=4, life=150)
    found = [next(invert).item() for _ in range(151)]
    assert found[0] == 0 < 1 < found[149] and found[150] == 0


@pytest.fixture
def task(digits):
    torch.manual_seed(0)
    cvae, kept = CVAE(latent_dim=4, hidden=(32, 16)), torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])
    return Task(cvae, diagonal_fisher(cvae, 500), digits[0], torch.tensor([3]), kept, scale=0.005)


def test_an_inner_adversary_says_how_much_less_drawings_cost_than_under_the_best_kept_label(task, monkeypatch):
    """By hand, before its first step: every z is 0."""
    def costs(model, y):
        return nll(model, torch.zeros(64, 4), y.expand(64, -1), drawings)

    cvae, attackers, drawings = task.start(), torch.randn(2, 10), (torch.rand(64, 784) < 0.2).float()
    cvae.decoder[-1].bias.data -= 1                         # which suits such drawings
    monkeypatch.setattr(task.original, "generate", lambda labels: drawings if {*labels.tolist()} == {3} else None)
    monkeypatch.setattr(methods, "in_the_box", lambda *_: attackers)
    monkeypatch.setattr(methods, "descend", lambda costs, *_, **__: iter([costs().detach()]))
    found = next(inner_inversion(cvae, task, attackers=2, k=64))
    floor = torch.stack([costs(task.original, y) for y in one_hot(task.kept)]).min(0).values.mean()
    torch.testing.assert_close(found, floor - torch.stack([costs(cvae, y) for y in attackers]).mean())
    assert found > 1


def test_noise_is_what_the_decoder_part_of_the_way_is_to_draw(task, share=0.6):
    """Value and gradient by hand."""
    cvae = CVAE(latent_dim=4, hidden=(32, 16))
    torch.manual_seed(1)
    found = noise_part_way(cvae, task, share)
    torch.manual_seed(1)
    y, z = one_hot(some(task.forgotten, 24).repeat(2)), torch.randn(48, 4)
    between = mixed(task.original, [cvae], [share])
    expected = nll(between, z, y, noise_pairs(48, 784, "cpu")).mean()
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(value, model.decoder[0].weight)[0] for value, model in ((found, cvae), (expected, between))]
    torch.testing.assert_close(slopes[0], share * slopes[1])


def test_the_label_edit_learns_noise_from_any_z(studied, monkeypatch):
    drawn, draw = [], torch.rand_like
    monkeypatch.setattr(torch, "rand_like", lambda like: drawn.append(draw(like)) or drawn[-1])
    caught = studied(METHODS["label edit"])
    z, told, _ = caught.model.told(caught.model.decoded, FORGOTTEN)
    assert len(z) == 384 and z.mean().abs() < 0.1 and 0.9 < z.std() < 1.1 and list(caught.terms) == ["forget"]
    assert_drawn_alike(told, FORGOTTEN)
    expected = nll(caught.model.exact, z, told, drawn[-1].double()).mean().item()
    assert caught.terms["forget"].item() == pytest.approx(expected, rel=1e-4)


def test_a_margin_learns_noise_at_the_end_and_part_of_the_way(studied, monkeypatch):
    monkeypatch.setattr(methods, "noise_part_way", lambda cvae, task, share: torch.as_tensor(share))
    caught = studied(METHODS["with a margin"])
    assert caught.terms["forget"] == 30 and 0.5 <= caught.terms["margin"] <= 1 and caught.choices["learning_rate"] == 1e-2


@pytest.mark.parametrize(("method", "before"), [("label edit", "original"), ("with a margin", "distilled amnesia")])
def test_an_edit_changes_the_forgotten_labels_column_alone(task, method, before):
    after, before = METHODS[method](task), METHODS[before](task)
    changed = {name: (p != old).any(0).nonzero().flatten().tolist() for (name, p), old in
               zip(after.named_parameters(), before.parameters(), strict=True) if not torch.equal(p, old)}
    assert changed == {"decoder.0.weight": [4 + 3]} and all(p.requires_grad for p in after.parameters())
    assert torch.equal(*(model.generate(task.kept, torch.ones(9, 4)) for model in (after, before)))


def test_references_are_trained_without_the_forgotten_digits(task, monkeypatch):
    """Retrain on the others; the oracle with noise by the seed in their place."""
    shown = []
    monkeypatch.setattr(methods, "train_from_scratch", lambda task, digits: shown.append(digits))
    gone, before, task.seed = task.train.labels == 3, task.train.images.clone(), 5
    METHODS["oracle"](task), METHODS["retrain"](task)
    oracle, retrain = shown
    noise = torch.randint(256, (gone.sum(), 784), generator=torch.Generator().manual_seed(5)).byte()
    assert torch.equal(oracle.images[gone], noise) and torch.equal(oracle.images[~gone], before[~gone])
    assert torch.equal(oracle.labels, task.train.labels) and torch.equal(task.train.images, before)
    assert torch.equal(retrain.images, before[~gone]) and torch.equal(retrain.labels, task.train.labels[~gone])


def test_dampening_is_its_formula(task):
    task.fim = {name: f * torch.rand_like(f) for name, f in task.fim.items()}
    after = flat(METHODS["dampening"](task).parameters())
    torch.manual_seed(task.seed)
    theirs = diagonal_fisher(task.original, 5000, labels=task.forgotten)
    f, f_f, old = flat(task.fim.values()), flat(theirs.values()), flat(task.original.parameters())
    expected = [w * min(a / b, 1) if b > 3 * a else w for a, b, w in zip(f.tolist(), f_f.tolist(), old.tolist(), strict=True)]
    torch.testing.assert_close(after, torch.tensor(expected))
    assert 0 < (f_f > 3 * f).sum() < len(f)


def test_saliency_changes_half_of_the_weights(task):
    salient, all_ = ((flat(METHODS[name](task).parameters()) != flat(task.original.parameters())).float().mean()
                     for name in ("SalUn", "random label"))
    assert 0.3 < salient <= 0.5 < all_


def test_surgery_takes_out_what_works_against_replay(studied):
    """One step of plain descent: the part along replay's gradient is replay's own, the rest that of ascent."""
    caught = studied(METHODS["gradient surgery"])
    step = flat(torch.autograd.grad(sum(caught.terms.values()), list(caught.model.cvae.parameters()))).double()
    g_f, g_r = (flat(torch.autograd.grad(worth(caught), list(caught.model.exact.parameters())))
                for worth in (ASCENT, replayed))                                          # those of the naive method
    along = g_r / g_r.norm()
    assert step @ along == pytest.approx(g_r.norm().item(), rel=1e-3)
    torch.testing.assert_close(step - (step @ along) * along, g_f - (g_f @ along) * along, rtol=1e-2, atol=1e-2)


def test_undo_teaches_another_network_every_answer(studied, monkeypatch):
    told = []
    monkeypatch.setattr(methods, "divergence", lambda *asked: told.append(asked) or torch.ones(1))
    monkeypatch.setattr(methods, "distilled", lambda task: "the teacher")
    caught = studied(METHODS["distilled anew"])
    (source, student, asked, also), = told
    assert source == "the teacher" and student is caught.model.cvae and asked is also
    torch.manual_seed(0)
    assert torch.equal(flat(student.parameters()), flat(moved(CVAE(latent_dim=4, hidden=(32, 16)), by=0.3).parameters()))   # new
    assert len(asked) == 128 and {*asked.tolist()} == {*range(10)}
    assert caught.choices == {"steps": 8000, "learning_rate": 0.002} and list(caught.terms) == ["remember"]


def test_a_new_decoder_learns_what_the_amnesiac_one_draws_under_every_label(studied, monkeypatch):
    """And the encoder stays."""
    told, teacher = [], CVAE(latent_dim=4, hidden=(32, 16))
    monkeypatch.setattr(methods, "divergence", lambda *asked: told.append(asked) or torch.ones(1))
    monkeypatch.setattr(methods, "distilled", lambda task: teacher)
    caught = studied(METHODS["new decoder"])
    (source, student, asked, also, half), = told
    assert source is teacher and student is not teacher and asked is also and half == "decoder"
    assert torch.equal(flat(student.encoder.parameters()), flat(moved(teacher, by=0.3).encoder.parameters()))
    torch.manual_seed(100)
    other = moved(CVAE(latent_dim=4, hidden=(32, 16)), by=0.3)
    assert torch.equal(flat(student.decoder.parameters()), flat(other.decoder.parameters()))
    assert len(asked) == 128 and {*asked.tolist()} == {*range(10)} and caught.choices == {"steps": 16_000}
