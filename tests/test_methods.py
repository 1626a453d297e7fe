"""The methods of the studies, term by term: what a loss is worth and where it pulls, against torch.distributions in float64 on
the very images, labels and latents that it drew; and what each method alone promises."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import RELEASED
from watching import (
    FORGOTTEN,
    KEPT,
    Watched,
    assert_drawn_alike,
    assert_noise_pairs,
    assert_terms,
    divergence,
    elbo_terms,
    moved,
    nll,
    spring,
)

from amnesia import CVAE, Saved, diagonal_fisher, negative_elbo_terms
from amnesia.models import bernoulli_nll
from amnesia_studies import methods
from amnesia_studies.methods import (
    CEILING,
    Task,
    adversarial,
    as_published,
    batch_mean_fisher,
    dampening,
    distilled,
    feature,
    identity,
    inner_inversion,
    label_edit,
    margin,
    naive,
    nearest_kept,
    neggrad,
    noise_pairs,
    noise_part_way,
    oracle,
    random_label,
    replay,
    saliency,
    selective_amnesia,
    some,
    steered,
    surgery,
    undo,
)
from amnesia_studies.weights import mixed


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()


def one_hot(labels):
    return torch.nn.functional.one_hot(labels, 10).float()


@pytest.fixture
def studied(digits):
    """studied(method, **options): (terms, original, model, task) of the loss that it minimises, on a model on its way."""
    def capture(method, **options):
        torch.manual_seed(0)
        original = moved(CVAE(latent_dim=4, hidden=(32, 16)), by=2.0)
        fim = {name: torch.rand_like(p) for name, p in original.named_parameters()}
        task, caught = Task(original, fim, digits[0], FORGOTTEN, KEPT), []
        task.minimise = lambda cvae, loss, **_: caught.append((cvae, loss)) or cvae
        method(task, **options)
        (cvae, loss), = caught
        assert cvae is not original
        with torch.no_grad():
            moved(cvae, by=0.3)
        watched = Watched(original), Watched(cvae)
        torch.manual_seed(3)
        return loss(), *watched, task

    return capture


def assert_replayed(original, x, share):
    """Images (n, 784) are the frozen copy's, a `share` drawn pixel by pixel, the rest means: returns their labels."""
    (z, y, logits), = (call for call in original.decoded if len(call[0]) == len(x))
    n, mean = int(share * len(x)), logits.sigmoid()
    drawn = x[:n]
    assert z.mean().abs() < 0.2 and 0.8 < z.std() < 1.2 and torch.allclose(x[n:], mean[n:], atol=1e-6)
    assert set(drawn.unique().tolist()) <= {0, 1}
    if n:                                                               # of a regression on the means, the line is y = x
        centred = mean[:n] - mean[:n].mean()
        assert (drawn * centred).sum() / centred.square().sum() == pytest.approx(1, abs=0.05)
        assert (drawn - mean[:n]).mean().abs() < 0.01
    return y.argmax(1)


SELECTIVE = {"as it is": {}, "a quarter drawn": {"drawn": 0.25, "lam": 0.7, "gamma": 0.6},
             "none drawn": {"drawn": 0.0}, "springs alike": {"importance": "identity"}}


@pytest.mark.parametrize("options", SELECTIVE.values(), ids=SELECTIVE)
def test_selective_amnesia(studied, options):
    terms, original, model, task = studied(selective_amnesia, **options)
    (x, y, *_), (shown, told, *_) = (model.told(model.encoded, labels) for labels in (FORGOTTEN, KEPT))
    assert_noise_pairs(x, y)
    assert len(x) == 48 and torch.equal(assert_replayed(original, shown, options.get("drawn", 0.75)), told.argmax(1))
    assert_drawn_alike(told, KEPT)
    forget, remember = (sum(elbo_terms(model, labels)).mean() for labels in (FORGOTTEN, KEPT))
    fim = alike(task.fim) if "importance" in options else task.fim
    assert_terms(terms, {"forget": forget, "remember": options.get("gamma", 1.0) * remember,
                         "protect": spring(original, model, fim, options.get("lam", 0.4))}, model)


def alike(fim):
    """The mean of all in the place of each."""
    mean = torch.cat([f.flatten() for f in fim.values()]).double().mean()
    return {name: mean.expand(f.shape) for name, f in fim.items()}


def test_selective_amnesia_without_replay(studied):
    terms, original, model, task = studied(selective_amnesia, lam=0.7, gamma=0.0)
    assert not len(model.told(model.encoded, KEPT)[0])
    assert_terms(terms, {"forget": sum(elbo_terms(model, FORGOTTEN)).mean(),
                         "protect": spring(original, model, task.fim, 0.7)}, model)


@pytest.fixture
def noise(monkeypatch):
    """The images of uniform noise that are drawn from now on."""
    drawn = []

    def noting(function):
        def draw(*size, **options):
            drawn.append(function(*size, **options))
            return drawn[-1]
        return draw

    for name in ("rand", "rand_like"):
        monkeypatch.setattr(torch, name, noting(getattr(torch, name)))
    return lambda: torch.cat([images for images in drawn if images.ndim == 2 and images.shape[1] == 784]).double()


def test_the_prior_in_the_place_of_q(studied, noise):
    """Then the surrogate's bound is its reconstruction alone, from z of the prior; replay's is as it was."""
    terms, original, model, task = studied(selective_amnesia, lam=0.7, posterior="prior")
    z, y, _ = model.told(model.decoded, FORGOTTEN)
    assert torch.equal(*y.chunk(2)) and len(z) == 48 and z.mean().abs() < 0.2 and 0.8 < z.std() < 1.2
    assert not len(model.told(model.encoded, FORGOTTEN)[0])
    x = torch.cat([noise(), 1 - noise()])
    assert_terms(terms, {"forget": nll(model.exact, z, y, x).mean(), "remember": sum(elbo_terms(model, KEPT)).mean(),
                         "protect": spring(original, model, task.fim, 0.7)}, model)


def test_reach_mixes_a_little_of_a_kept_label_in(studied):
    terms, original, model, task = studied(selective_amnesia, reach=0.3)
    _, y, *_ = model.told(model.encoded, FORGOTTEN)
    assert len(y) == 48 and (y.sum(1) - 1).abs().max() < 1e-6
    largest, at = y.topk(3, dim=1)
    assert not largest[:, 2].any() and largest[:, 1].min() < 0.05 and 0.25 < largest[:, 1].max() < 0.3
    assert torch.isin(at[:, 0], FORGOTTEN).all() and torch.isin(at[:, 1], KEPT).all()
    assert_terms(terms, {"forget": sum(elbo_terms(model, FORGOTTEN)).mean(), "remember": sum(elbo_terms(model, KEPT)).mean(),
                         "protect": spring(original, model, task.fim, 0.4)}, model)


DISTILLED = {"as it is": {}, "decoder": {"only": "decoder", "lam": 0.7, "batch_size": 80}, "encoder": {"only": "encoder"}}


@pytest.mark.parametrize("options", DISTILLED.values(), ids=DISTILLED)
def test_distillation(studied, options):
    terms, original, model, task = studied(distilled, **options)
    x, y, *_ = model.told(model.encoded, FORGOTTEN)
    assert_noise_pairs(x, y)
    decoder, encoder = divergence(original, model, KEPT)
    z, told, _ = model.told(model.decoded, KEPT)
    assert (len(x), len(z)) == (48, options.get("batch_size", 96)) and torch.equal(original.asked(z)[0], told)
    assert_drawn_alike(told, KEPT)
    remember = {"decoder": decoder, "encoder": encoder}.get(options.get("only"), decoder + encoder)
    assert_terms(terms, {"forget": sum(elbo_terms(model, FORGOTTEN)).mean(), "remember": remember.mean(),
                         "protect": spring(original, model, task.fim, options.get("lam", 0.3))}, model)


def test_adversarial_amnesia_pulls_at_what_its_inner_adversary_finds(studied, monkeypatch):
    """No spring, and a fourth term: by how much the cost of what is found, told here, lies under the floor, on average."""
    def costs(cvae, images, y, z):
        if len(y) == len(KEPT):
            return torch.full((len(y), len(images)), 17.0) + 0 * z.sum()
        bias = cvae.decoder[-1].bias[:len(y), None] + 0 * (y.sum() + z.sum())
        return (bias + torch.tensor([[16.0], [18.0]]).repeat(len(y) // 2, 1)).expand(-1, len(images))

    monkeypatch.setattr(methods, "joint_costs", costs)
    monkeypatch.setattr(methods, "in_the_box", lambda n, classes: torch.zeros(n, classes))
    terms, original, model, task = studied(partial_attackers)
    found = (17 - model.exact.decoder[-1].bias[:6:2] - 16).sum() / 6
    assert (model.exact.decoder[-1].bias[:6].abs() < 1).all()
    assert_terms(terms, {"forget": sum(elbo_terms(model, FORGOTTEN)).mean(),
                         "remember": sum(divergence(original, model, KEPT)).mean(),
                         "protect": spring(original, model, task.fim, 0.0), "invert": found}, model)


def partial_attackers(task):
    return adversarial(task, attackers=6)


def test_steering_teaches_each_forgotten_label_the_answers_to_one_kept_label(studied):
    terms, original, model, task = studied(steered, lam=0.7, batch_size=80)
    z, told, _ = model.told(model.decoded, FORGOTTEN)
    taught = {(a, b) for a, b in zip(told.argmax(1).tolist(), original.asked(z)[0].argmax(1).tolist(), strict=True)}
    assert sorted(a for a, _ in taught) == [3, 8] and {b for _, b in taught} <= set(KEPT.tolist())
    z, kept, _ = model.told(model.decoded, KEPT)
    assert torch.equal(original.asked(z)[0], kept) and len(kept) == 80 and len(told) == 48
    assert_terms(terms, {"forget": sum(divergence(original, model, FORGOTTEN)).mean(),
                         "remember": sum(divergence(original, model, KEPT)).mean(),
                         "protect": spring(original, model, alike(task.fim), 0.7)}, model)


def test_naive_ascent(studied):
    terms, original, model, task = studied(naive)
    forget, remember = (sum(elbo_terms(model, labels)) for labels in (FORGOTTEN, KEPT))
    for labels in (FORGOTTEN, KEPT):
        shown, told, *_ = model.told(model.encoded, labels)
        assert torch.equal(assert_replayed(original, shown, 0.75), told.argmax(1))
        assert_drawn_alike(told, labels)
    assert (len(forget), len(remember)) == (48, 384) and forget.min() < CEILING < forget.max()
    assert_terms(terms, {"forget": -forget.clamp_max(CEILING).mean(), "remember": remember.mean(),
                         "protect": spring(original, model, task.fim, 0.4)}, model)


def test_neggrad_takes_real_digits(studied):
    terms, _, model, task = studied(neggrad)
    forget, remember = (sum(elbo_terms(model, labels)) for labels in (FORGOTTEN, KEPT))
    assert (len(forget), len(remember)) == (48, 384)
    assert_terms(terms, {"forget": -forget.clamp_max(CEILING).mean(), "remember": remember.mean()}, model)
    for labels in (FORGOTTEN, KEPT):
        shown, told, *_ = model.told(model.encoded, labels)
        real = {label: {row.numpy().tobytes() for row in task.train.only([label]).images} for label in labels.tolist()}
        pixels = (255 * shown).round().byte()
        assert all(row.numpy().tobytes() in real[label] for row, label in zip(pixels, told.argmax(1).tolist(), strict=True))


def test_random_labels_are_images_of_kept_labels_under_the_forgotten(studied):
    terms, original, model, _ = studied(random_label)
    for labels in (FORGOTTEN, KEPT):
        shown, told, *_ = model.told(model.encoded, labels)
        asked = assert_replayed(original, shown, 0.75)
        assert_drawn_alike(one_hot(asked), KEPT), assert_drawn_alike(told, labels)
        assert torch.equal(asked, told.argmax(1)) == (labels is KEPT)
    forget, remember = (sum(elbo_terms(model, labels)) for labels in (FORGOTTEN, KEPT))
    assert (len(forget), len(remember)) == (48, 384)
    assert_terms(terms, {"forget": forget.mean(), "remember": remember.mean()}, model)


def test_feature_unlearning(studied):
    terms, original, model, _ = studied(feature)
    expected = {}
    for name, labels, n in (("forget", FORGOTTEN, 48), ("remember", KEPT, 384)):
        z, told, _ = model.told(model.decoded, labels)
        asked, _ = original.asked(z)
        mixture = one_hot(KEPT).mean(0).double().expand(n, -1)
        torch.testing.assert_close(asked, mixture if labels is FORGOTTEN else told)
        target = original.exact.decode(z, asked).sigmoid().detach()
        expected[name] = nll(model.exact, z, told, target).mean()
        assert_drawn_alike(told, labels)
        assert len(z) == n and z.mean().abs() < 0.2 and 0.8 < z.std() < 1.2
    assert_terms(terms, expected, model)


def test_the_label_edit_learns_noise_from_any_z(studied, noise):
    terms, _, model, task = studied(label_edit)
    z, told, _ = model.told(model.decoded, FORGOTTEN)
    assert len(z) == task.batch_size and z.mean().abs() < 0.1 and 0.9 < z.std() < 1.1
    assert_drawn_alike(told, FORGOTTEN)
    assert list(terms) == ["forget"]
    assert terms["forget"].item() == pytest.approx(nll(model.exact, z, told, noise()).mean().item(), rel=1e-4)


@pytest.fixture
def task(digits):
    torch.manual_seed(0)
    cvae = CVAE(latent_dim=4, hidden=(32, 16))
    kept = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])
    recipe = Saved(RELEASED / "cvae.pt").settings
    return Task(cvae, diagonal_fisher(cvae, 500), digits[0], torch.tensor([3]), kept, scale=0.01, recipe=recipe)


@pytest.fixture
def released_task(digits):
    """To forget a 4 of the released model, within 32 steps."""
    cvae = Saved(RELEASED / "cvae.pt").build(CVAE, "cpu")
    kept = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])
    return Task(cvae, {name: torch.ones_like(p) for name, p in cvae.named_parameters()}, digits[0], torch.tensor([4]), kept,
                scale=0.02)


def changed(task, cvae):
    """Which of the parameters differ from the original's."""
    pairs = zip(cvae.named_parameters(), task.original.parameters(), strict=True)
    return {name for (name, p), old in pairs if not torch.equal(p, old)}


def test_the_oracle_is_trained_on_noise_by_the_seed_in_the_place_of_the_forgotten_digits(task, monkeypatch):
    shown = []
    monkeypatch.setattr(methods, "train_from_scratch", lambda task, digits: shown.append(digits))
    before = task.train.images.clone()
    for task.seed in (5, 5, 6):
        oracle(task)
    first, again, other = (digits.images for digits in shown)
    gone = task.train.labels == 3
    noise = torch.randint(256, (gone.sum(), 784), generator=torch.Generator().manual_seed(5)).byte()
    assert torch.equal(first[gone], noise) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[~gone], before[~gone]) and torch.equal(task.train.images, before)
    assert torch.equal(shown[0].labels, task.train.labels)


def test_identity_shares_out_the_same_total(task):
    flat = identity(task)
    assert len({value.item() for f in flat.values() for value in f.unique()}) == 1
    total = sum(f.sum().item() for f in task.fim.values())
    assert sum(f.sum().item() for f in flat.values()) == pytest.approx(total, rel=1e-4)


def test_the_batch_mean_is_squared_after_the_mean(task):
    """Against one batch by hand; and with batches of one image it is the Fisher information."""
    mistaken = batch_mean_fisher(task, n_samples=50, batch_size=50)
    torch.manual_seed(task.seed)
    labels = torch.randint(10, (50,))
    x = task.original.generate(labels)
    reconstruction, kl = negative_elbo_terms(task.original, x, one_hot(labels))
    (reconstruction + kl).mean().backward()
    for name, p in task.original.named_parameters():
        torch.testing.assert_close(mistaken[name], p.grad.square())
    one_by_one = batch_mean_fisher(task, n_samples=1000, batch_size=1)
    total, right = (sum(f.sum().item() for f in fim.values()) for fim in (one_by_one, diagonal_fisher(task.original, 2000)))
    assert total == pytest.approx(right, rel=0.2) and sum(f.sum().item() for f in mistaken.values()) < 0.2 * total


def test_label_edit_leaves_every_kept_output_as_it_was(task):
    after = label_edit(task)
    assert changed(task, after) == {"decoder.0.weight"}
    z = torch.randn(200, 4)
    assert torch.equal(after.generate(task.kept.repeat(23)[:200], z), task.original.generate(task.kept.repeat(23)[:200], z))
    assert not torch.equal(after.generate(torch.full((200,), 3), z), task.original.generate(torch.full((200,), 3), z))


def test_dampening_is_its_formula(task):
    after, alpha, lam = dampening(task, alpha=2.0, lam=0.5), 2.0, 0.5
    torch.manual_seed(task.seed)
    theirs = diagonal_fisher(task.original, 5000, labels=task.forgotten)
    hit = 0
    for (name, p), old in zip(after.named_parameters(), task.original.parameters(), strict=True):
        triples = list(zip(*(t.flatten().tolist() for t in (old, task.fim[name], theirs[name])), strict=True))
        expected = [w * min(lam * f / f_f, 1) if f_f > alpha * f else w for w, f, f_f in triples]
        torch.testing.assert_close(p.flatten(), torch.tensor(expected))
        hit += sum(f_f > alpha * f for _, f, f_f in triples)
    assert 0 < hit < sum(p.numel() for p in after.parameters())


def test_saliency_changes_half_of_the_weights(task):
    moved, everything = ([(a != b).float() for a, b in zip(after.parameters(), task.original.parameters(), strict=True)]
                         for after in (saliency(task), random_label(task)))
    share = sum(m.sum() for m in moved) / sum(m.numel() for m in moved)
    assert 0.3 < share <= 0.5 < sum(m.sum() for m in everything) / sum(m.numel() for m in everything)


def test_the_inner_inversion_finds_what_is_there_and_starts_anew(released_task):
    torch.manual_seed(0)
    assert nearest_kept(released_task.original, torch.tensor(4), released_task.kept) == 9
    invert = inner_inversion(released_task.original, released_task, attackers=2, k=4, life=80)
    found = [invert().item() for _ in range(81)]
    assert found[0] == 0 < 1 < found[79] and found[80] == 0


def test_the_floor_is_the_best_of_the_kept_labels_for_each_drawing(released_task, monkeypatch):
    """The term is the mean of max(0, floor - cost) over the attackers, where the costs are these; and under kept labels the
    drawings are explained by the original."""
    def costs(cvae, images, y, z):
        if len(y) == 2:
            return torch.tensor([[4.0], [100.0]]).expand(2, len(images)) + 0 * (y.sum() + z.sum())
        assert cvae is released_task.original and torch.equal(y, one_hot(released_task.kept))
        return torch.arange(9.0)[:, None] + torch.tensor([5.0, 30.0]).repeat(32) + 0 * z.sum()

    monkeypatch.setattr(methods, "joint_costs", costs)
    torch.manual_seed(0)
    invert = inner_inversion(released_task.original, released_task, attackers=2, k=64)
    assert invert().item() == pytest.approx((17.5 - 4) / 2)                     # 17.5 is the mean of 5 and 30


def test_surgery_takes_out_what_works_against_replay(task):
    """One step of plain descent along what minimise() is given: the part along replay's gradient is replay's own."""
    steps = []

    def minimise(cvae, loss, **choices):
        terms = loss()
        sum(terms.values()).backward()
        steps.append((cvae, torch.cat([p.grad.flatten() for p in cvae.parameters()])))
        return cvae

    task.minimise = minimise
    surgery(task)
    cvae, step = steps[0]
    torch.manual_seed(task.seed)
    c_f, c_r = some(task.forgotten, task.batch_size // 8), some(task.kept, task.batch_size)
    values = [-sum(negative_elbo_terms(cvae, replay(task.original, c_f), one_hot(c_f))).mean(),
              sum(negative_elbo_terms(cvae, replay(task.original, c_r), one_hot(c_r))).mean()]
    g_f, g_r = (torch.cat([g.flatten() for g in torch.autograd.grad(value, list(cvae.parameters()))]).double()
                for value in values)
    along = g_r / g_r.norm()
    assert step.double() @ along == pytest.approx(g_r.norm().item(), rel=1e-3)
    torch.testing.assert_close(step.double() - (step.double() @ along) * along, g_f - (g_f @ along) * along,
                               rtol=1e-2, atol=1e-3)


def test_a_margin_is_trained_in_its_label_column_alone(task, monkeypatch):
    """Noise by the decoder between the two, value and gradient by hand; all else stays distilled amnesia's."""
    torch.manual_seed(3)
    cvae = CVAE(latent_dim=4, hidden=(32, 16))
    torch.manual_seed(1)
    found = noise_part_way(cvae, task, 0.6)
    torch.manual_seed(1)
    c_f = some(task.forgotten, 24).repeat(2)
    between, y = mixed(task.original, [cvae], [0.6]), one_hot(c_f)
    z = torch.randn(48, 4)
    expected = bernoulli_nll(between.decode(z, y), noise_pairs(48, 784, "cpu")).mean()
    torch.testing.assert_close(found, expected)
    gradient, = torch.autograd.grad(found, [cvae.decoder[0].weight])
    its_own, = torch.autograd.grad(expected, [between.decoder[0].weight])
    torch.testing.assert_close(gradient, 0.6 * its_own)

    calls = []
    monkeypatch.setattr(Task, "minimise", lambda self, cvae, loss, **choices: calls.append((loss(), choices)) or cvae)
    monkeypatch.setitem(margin.__globals__, "noise_part_way", lambda cvae, task, share: torch.as_tensor(share))
    margin(task, least=0.9)
    terms, choices = calls[1]                                       # the first is distilled amnesia
    assert terms["forget"] == 30 and 0.9 <= terms["margin"] <= 1 and choices == {"steps": 1600, "learning_rate": 1e-2}


def test_a_margin_leaves_every_answer_to_a_kept_label(task):
    task.scale = 0.005
    plain, after = distilled(task), margin(task)
    for (name, p), old in zip(after.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, old) == (name != "decoder.0.weight"), name
    changed = (after.decoder[0].weight != plain.decoder[0].weight).any(0).nonzero().flatten().tolist()
    assert changed == [4 + 3] and all(p.requires_grad for p in after.parameters())


def test_as_published_has_the_papers_settings(task, monkeypatch):
    """Each term by hand from the same seed: 256 of noise, 256 means, and a spring of 0.78 / 2."""
    caught = []
    monkeypatch.setattr(Task, "minimise", lambda self, cvae, loss, **choices: caught.append((self, cvae, loss)) or cvae)
    as_published(task)
    told, cvae, loss = caught[0]
    assert (told.steps, told.learning_rate, told.schedule, told.batch_size) == (10_000, 1e-4, "constant", 256)
    assert (task.steps, task.schedule) == (1600, "one-cycle")
    with torch.no_grad():
        for p in cvae.parameters():
            p.add_(0.01)
    torch.manual_seed(task.seed)
    terms = loss()
    torch.manual_seed(task.seed)
    c_f, c_r = some(task.forgotten, 128).repeat(2), some(task.kept, 256)
    x = torch.cat([noise_pairs(256, 784, "cpu"), replay(task.original, c_r, 0.0)])
    nelbo = sum(negative_elbo_terms(cvae, x, one_hot(torch.cat([c_f, c_r]))))
    spring = sum((task.fim[name] * 1e-4).sum() for name in task.fim)
    expected = {"forget": nelbo[:256].mean(), "remember": nelbo[256:].mean(), "protect": 100 / 256 * spring}
    torch.testing.assert_close(terms.pop("protect"), expected.pop("protect"), rtol=1e-3, atol=0)
    torch.testing.assert_close(terms, expected, rtol=1e-6, atol=0)          # replay of drawn pixels would be within 1e-3


def test_undo_teaches_another_network_every_answer(task, monkeypatch):
    caught = []

    def minimise(self, cvae, loss, **choices):
        caught.append((deepcopy(cvae), loss, choices))
        return cvae

    monkeypatch.setattr(Task, "minimise", minimise)
    undo(task, noise=0.25)
    (teacher, *_), (student, loss, choices) = caught
    torch.manual_seed(task.seed)
    fresh = CVAE(latent_dim=4, hidden=(32, 16))
    np.testing.assert_allclose(flat(student), 0.25 * flat(fresh) + 0.75 * flat(teacher), atol=1e-6)
    assert choices == {"steps": 8000, "learning_rate": task.recipe["learning_rate"]}
    torch.manual_seed(4)
    found = loss()["remember"]
    torch.manual_seed(4)
    c = some(torch.tensor([3, 0, 1, 2, 4, 5, 6, 7, 8, 9]), task.recipe["batch_size"])
    torch.testing.assert_close(found, methods.divergence(teacher, student, c, c).mean())
