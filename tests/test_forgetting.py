"""Distilled amnesia is notebook 03 to the bit; the paper's own objective, its switches and its rivals do what they say."""

from copy import deepcopy

import pytest
import torch
from cells import run_here
from conftest import REPOSITORY

from amnesia import CVAE, diagonal_fisher, negative_elbo_terms, one_hot
from amnesia.storage.files import Saved
from amnesia_studies.methods import references
from amnesia_studies.methods.adversarial import adversarial, inner_inversion
from amnesia_studies.methods.ascent import CEILING, naive, neggrad
from amnesia_studies.methods.distillation import distilled, divergence, nearest_kept, steered
from amnesia_studies.methods.editing import dampening, label_edit
from amnesia_studies.methods.projection import surgery
from amnesia_studies.methods.references import oracle, retrain
from amnesia_studies.methods.relabelling import feature, random_label, saliency
from amnesia_studies.methods.selective_amnesia import batch_mean_fisher, identity, selective_amnesia
from amnesia_studies.methods.task import Task, replay, some


@pytest.fixture
def task(digits):
    torch.manual_seed(0)
    cvae = CVAE(latent_dim=4, hidden=(32, 16))
    kept = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])
    recipe = Saved(REPOSITORY / "checkpoints" / "released" / "cvae.pt").settings
    return Task(cvae, diagonal_fisher(cvae, 500), digits[0], torch.tensor([3]), kept, scale=0.01, recipe=recipe)


@pytest.fixture
def released_task(digits):
    """To forget a 4 of the released model, within 32 steps."""
    cvae = Saved(REPOSITORY / "checkpoints" / "released" / "cvae.pt").build(CVAE, "cpu")
    kept = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])
    return Task(cvae, {name: torch.ones_like(p) for name, p in cvae.named_parameters()}, digits[0], torch.tensor([4]), kept,
                scale=0.02)


def changed(task, cvae):
    """Which of the parameters differ from the original's."""
    pairs = zip(cvae.named_parameters(), task.cvae.parameters(), strict=True)
    return {name for (name, p), old in pairs if not torch.equal(p, old)}


@pytest.mark.parametrize("choices", [{}, {"lam": 40.0}])
def test_distillation_is_notebook_03_to_the_bit(tmp_path, digits, monkeypatch, choices):
    names = run_here("03_forget", "stage.save(", workspace=str(tmp_path), forget=[3, 8], steps=16, seed=5, **choices)
    fim = {name: value for name, value in names["fim_file"].state.items()}
    task = Task(names["cvae_file"].build(CVAE, "cpu"), fim, digits[0], torch.tensor([3, 8]),
                torch.tensor([0, 1, 2, 4, 5, 6, 7, 9]), seed=5, scale=0.01)
    ours = distilled(task, **choices)
    assert len(changed(task, ours)) == 12
    for a, b in zip(ours.parameters(), names["cvae"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_retraining_on_all_digits_is_notebook_01_to_the_bit(tmp_path, digits, monkeypatch):
    names = run_here("01_train_cvae", "stage.save(", workspace=str(tmp_path), steps=25, seed=5)
    task = Task(CVAE(), {}, digits[0], torch.tensor([]), torch.arange(10), seed=5, recipe=names["stage"].settings)
    for a, b in zip(retrain(task).parameters(), names["cvae"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_oracle_is_trained_on_noise_by_the_seed_in_the_place_of_the_forgotten_digits(task, monkeypatch):
    shown = []
    monkeypatch.setattr(references, "train_from_scratch", lambda task, digits: shown.append(digits))
    before = task.train.images.clone()
    for task.seed in (5, 5, 6):
        oracle(task)
    first, again, other = (digits.images for digits in shown)
    gone = task.train.labels == 3
    noise = torch.randint(256, (gone.sum(), 784), generator=torch.Generator().manual_seed(5)).byte()
    assert torch.equal(first[gone], noise) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[~gone], before[~gone]) and torch.equal(task.train.images, before)
    assert torch.equal(shown[0].labels, task.train.labels)


def test_nothing_is_replayed_without_gamma(task):
    """The kept labels' columns get no gradient then, with λ = 0."""
    def columns(cvae):
        return cvae.decoder[0].weight[:, task.cvae.latent_dim + task.kept]

    assert torch.equal(columns(selective_amnesia(task, lam=0.0, gamma=0.0)), columns(task.cvae))
    assert not torch.equal(columns(selective_amnesia(task, lam=0.0)), columns(task.cvae))


def test_a_stiff_spring_holds(task):
    def distance(lam):
        after = selective_amnesia(task, lam=lam, importance="identity")
        pairs = zip(after.parameters(), task.cvae.parameters(), strict=True)
        return sum((p - old).square().sum() for p, old in pairs).item()

    assert distance(1e4) < 0.5 * distance(0.0)


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
    x = task.cvae.generate(labels)
    reconstruction, kl = negative_elbo_terms(task.cvae, x, one_hot(labels))
    (reconstruction + kl).mean().backward()
    for name, p in task.cvae.named_parameters():
        torch.testing.assert_close(mistaken[name], p.grad.square())
    one_by_one = batch_mean_fisher(task, n_samples=1000, batch_size=1)
    total, right = (sum(f.sum().item() for f in fim.values()) for fim in (one_by_one, diagonal_fisher(task.cvae, 2000)))
    assert total == pytest.approx(right, rel=0.2) and sum(f.sum().item() for f in mistaken.values()) < 0.2 * total


def test_label_edit_leaves_every_kept_output_as_it_was(task):
    after = label_edit(task)
    assert changed(task, after) == {"decoder.0.weight"}
    z = torch.randn(200, 4)
    assert torch.equal(after.generate(task.kept.repeat(23)[:200], z), task.cvae.generate(task.kept.repeat(23)[:200], z))
    assert not torch.equal(after.generate(torch.full((200,), 3), z), task.cvae.generate(torch.full((200,), 3), z))


def test_dampening_is_its_formula(task):
    after, alpha, lam = dampening(task, alpha=2.0, lam=0.5), 2.0, 0.5
    torch.manual_seed(task.seed)
    theirs = diagonal_fisher(task.cvae, 5000, labels=task.forgotten)
    hit = 0
    for (name, p), old in zip(after.named_parameters(), task.cvae.parameters(), strict=True):
        triples = list(zip(*(t.flatten().tolist() for t in (old, task.fim[name], theirs[name])), strict=True))
        expected = [w * min(lam * f / f_f, 1) if f_f > alpha * f else w for w, f, f_f in triples]
        torch.testing.assert_close(p.flatten(), torch.tensor(expected))
        hit += sum(f_f > alpha * f for _, f, f_f in triples)
    assert 0 < hit < sum(p.numel() for p in after.parameters())


def test_saliency_changes_half_of_the_weights(task):
    moved, everything = ([(a != b).float() for a, b in zip(after.parameters(), task.cvae.parameters(), strict=True)]
                         for after in (saliency(task), random_label(task)))
    share = sum(m.sum() for m in moved) / sum(m.numel() for m in moved)
    assert 0.3 < share <= 0.5 < sum(m.sum() for m in everything) / sum(m.numel() for m in everything)


def test_the_divergence_is_that_of_two_conditionals(task):
    """Between what the frozen copy says of one label and the model of another, by torch.distributions."""
    original, cvae = task.cvae, CVAE(latent_dim=4, hidden=(32, 16))
    asked, told = torch.tensor([1, 4, 9]), torch.tensor([3, 3, 9])
    torch.manual_seed(1)
    found = divergence(original, cvae, asked, told)
    torch.manual_seed(1)
    z, (old, new) = torch.randn(3, 4), (one_hot(labels) for labels in (asked, told))
    pixels = [torch.distributions.Bernoulli(logits=c.decode(z, y)) for c, y in ((original, old), (cvae, new))]
    x = pixels[0].probs
    latents = [torch.distributions.Normal(mean, (log_var / 2).exp())
               for mean, log_var in (original.encode(x, old), cvae.encode(x, new))]
    torch.testing.assert_close(found, sum(torch.distributions.kl_divergence(*pair).sum(1) for pair in (pixels, latents)),
                               rtol=1e-4, atol=1e-4)


def test_steering_teaches_the_answer_to_the_nearest_label(released_task):
    assert nearest_kept(released_task.cvae, torch.tensor(4), released_task.kept) == 9
    after, z = steered(released_task), torch.randn(50, 8)
    four, nine = (torch.full((50,), label) for label in (4, 9))
    target = released_task.cvae.generate(nine, z)
    before, now = ((cvae.generate(four, z) - target).square().mean() for cvae in (released_task.cvae, after))
    assert now < 0.5 * before


def test_the_inner_inversion_finds_what_is_there(released_task):
    """Much, in the model that draws the digit; nothing, in one that draws grey; and it starts anew now and then."""
    grey = deepcopy(released_task.cvae)
    with torch.no_grad():
        grey.decoder[-1].weight.zero_(), grey.decoder[-1].bias.zero_()
    found = {}
    for name, cvae in (("original", released_task.cvae), ("grey", grey)):
        torch.manual_seed(0)
        invert = inner_inversion(cvae, released_task, attackers=2, k=4, life=150)
        found[name] = [invert().item() for _ in range(151)]
    assert found["original"][0] == 0 < 10 < found["original"][149] and found["original"][150] == 0
    assert not any(found["grey"])


def test_the_floor_is_the_best_of_the_kept_labels_for_each_drawing(released_task, monkeypatch):
    """The term is the mean of max(0, floor - cost) over the attackers, where the costs are these."""
    class Told:
        def __init__(self, cvae, images, y, fixed=False):
            self.among_kept, self.k = fixed, len(images)

        def step(self):
            return torch.arange(9.0)[:, None] + torch.tensor([5.0, 30.0]).repeat(32) if self.among_kept else None

        def costs(self):
            return torch.tensor([[4.0], [100.0]]).expand(2, self.k)

    monkeypatch.setitem(inner_inversion.__globals__, "Inversion", Told)
    torch.manual_seed(0)
    invert = inner_inversion(released_task.cvae, released_task, attackers=2, k=64)
    assert invert().item() == pytest.approx((17.5 - 4) / 2)                     # 17.5 is the mean of 5 and 30


def test_adversarial_amnesia_is_distilled_amnesia_with_one_term_more(task):
    terms = []
    task.minimise = lambda cvae, loss: terms.append({k: v.item() for k, v in loss().items()}) or cvae
    adversarial(task), distilled(task)
    assert terms[0].keys() - terms[1].keys() == {"invert"} and terms[0]["forget"] > 500
    assert task.minimise.__name__ == "<lambda>"             # the task is left as it was


def test_the_divergence_is_the_sum_of_its_halves(task):
    def remember(only):
        losses = []
        task.minimise = lambda cvae, loss: losses.append((cvae, loss)) or cvae
        distilled(task, only=only)
        (cvae, loss), = losses
        with torch.no_grad():
            for p in cvae.parameters():                                            # moved away from the frozen copy
                p.mul_(2)
        torch.manual_seed(1)
        return loss()["remember"].item()

    decoder, encoder = remember("decoder"), remember("encoder")
    assert min(decoder, encoder) > 0.01 and remember("") == pytest.approx(decoder + encoder, rel=1e-5)


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
    values = [-sum(negative_elbo_terms(cvae, replay(task.cvae, c_f), one_hot(c_f))).mean(),
              sum(negative_elbo_terms(cvae, replay(task.cvae, c_r), one_hot(c_r))).mean()]
    g_f, g_r = (torch.cat([g.flatten() for g in torch.autograd.grad(value, list(cvae.parameters()))]).double()
                for value in values)
    along = g_r / g_r.norm()
    assert step.double() @ along == pytest.approx(g_r.norm().item(), rel=1e-3)
    torch.testing.assert_close(step.double() - (step.double() @ along) * along, g_f - (g_f @ along) * along,
                               rtol=1e-2, atol=1e-3)


def test_feature_unlearning_draws_a_mixture_under_the_forgotten_label(task):
    task.scale = 0.1
    after, z = feature(task), torch.randn(100, 4)
    asked = one_hot(torch.full((100,), 3))
    mixture = task.cvae.decode(z, one_hot(task.kept).mean(0).expand(100, -1)).sigmoid()
    before, now = ((cvae.decode(z, asked).sigmoid() - mixture).square().mean() for cvae in (task.cvae, after))
    assert now < 0.5 * before


@pytest.mark.parametrize("method", [naive, neggrad])
def test_ascent_lowers_the_forgotten_elbo_and_stops_at_the_ceiling(task, digits, method):
    task.scale = 0.08
    after, x = method(task), digits[1].only([3])
    before, now = (sum(negative_elbo_terms(cvae, *x[:200])).mean().item() for cvae in (task.cvae, after))
    assert now > before + 100 and now > 0.5 * CEILING


def test_references_never_see_the_digit(task, digits, monkeypatch):
    """Retrain's data lack it; Oracle's hold noise in its place, and everything else as it was."""
    monkeypatch.setattr(references, "grow", lambda digits, seed: digits)        # a small set would be grown by copies
    seen = []
    monkeypatch.setattr(references, "grow", lambda digits, seed: digits)    # which makes many of a few
    task.minimise = lambda cvae, loss, **choices: seen.append(loss.__closure__) or cvae
    retrain(task), oracle(task)
    data = [next(cell.cell_contents for cell in closure if hasattr(cell.cell_contents, "batch")) for closure in seen]
    assert 3 not in data[0].labels and len(data[0]) == (digits[0].labels != 3).sum()
    noise = data[1].only([3]).images.float()
    assert len(data[1]) == len(digits[0]) and abs(noise.mean() - 127.5) < 1 and abs(noise.std() - 73.9) < 1
    assert torch.equal(data[1].only(range(3)).images, digits[0].only(range(3)).images)
