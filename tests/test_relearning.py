"""What is left after forgetting: relearning beside mirror images, weights mixed and rounded, and methods made for that."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from conftest import RELEASED

from amnesia import CVAE, Classifier, one_hot
from amnesia.models import bernoulli_nll, negative_elbo_terms
from amnesia.storage.files import Saved
from amnesia_studies import recovery, relearning
from amnesia_studies.methods.distillation import distilled, divergence, undo
from amnesia_studies.methods.margin import margin, noise_part_way
from amnesia_studies.methods.selective_amnesia import as_published, noise_pairs
from amnesia_studies.methods.task import Task, replay, some
from amnesia_studies.recovery import forget_and_alter, forget_and_relearn, forget_apart, originals_apart
from amnesia_studies.relearning import CONTRAST, mirrored, recognised, relearn, savings, with_adapters
from amnesia_studies.scoring import look_at
from amnesia_studies.sweep import images_from_text
from amnesia_studies.tables import altered_metrics, mixed_metrics, relearning_metrics
from amnesia_studies.weights import exchanged, mixed, rounded


@pytest.fixture(scope="module")
def cvae():
    return Saved(RELEASED / "cvae.pt").build(CVAE, "cpu")


@pytest.fixture(scope="module")
def judge():
    return Saved(RELEASED / "classifier.pt").build(Classifier, "cpu")


@pytest.fixture
def task(digits):
    torch.manual_seed(0)
    small = CVAE(latent_dim=4, hidden=(32, 16))
    fim = {name: torch.rand_like(p) for name, p in small.named_parameters()}
    recipe = {"batch_size": 20, "learning_rate": 2e-3}
    return Task(small, fim, digits[0], torch.tensor([3]), torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9]), seed=5, recipe=recipe)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()


def grey_model(cvae):
    """A model that draws grey, whatever it is asked for."""
    grey = deepcopy(cvae)
    with torch.no_grad():
        grey.decoder[-1].weight.zero_(), grey.decoder[-1].bias.zero_()
    return grey


def test_weights_are_mixed_by_the_formula():
    torch.manual_seed(0)
    base, a, b = (CVAE(latent_dim=2, hidden=(8, 4)) for _ in range(3))
    before = [flat(model) for model in (base, a, b)]
    theta, of_a, of_b = before
    np.testing.assert_allclose(flat(mixed(base, [a, b], [0.5, 0.5])), (of_a + of_b) / 2, atol=1e-6)
    np.testing.assert_allclose(flat(mixed(base, [a, b], [1.2, 1.2])), theta + 1.2 * (of_a - theta) + 1.2 * (of_b - theta),
                               atol=1e-6)
    np.testing.assert_allclose(flat(mixed(base, [a], [0.3])), 0.7 * theta + 0.3 * of_a, atol=1e-6)
    assert all((flat(model) == old).all() for model, old in zip((base, a, b), before, strict=True))
    with pytest.raises(ValueError, match="zip"):
        mixed(base, [a, b], [0.5])


def test_rounding_leaves_so_many_values():
    """By hand for three bits: seven values, a third of the largest entry apart."""
    cvae = CVAE(latent_dim=2, hidden=(8, 4))
    with torch.no_grad():
        cvae.decoder[0].weight.zero_()
        cvae.decoder[0].weight[0, :4] = torch.tensor([0.9, -0.5, 0.44, 0.16])
    after = rounded(cvae, 3)
    torch.testing.assert_close(after.decoder[0].weight[0, :4], torch.tensor([0.9, -0.6, 0.3, 0.3]))
    assert len(after.encoder[0].weight.unique()) <= 7 and torch.equal(after.decoder[0].bias, cvae.decoder[0].bias)
    assert cvae.decoder[0].weight[0, 1] == -0.5


def test_layers_are_exchanged():
    torch.manual_seed(0)
    a, b = CVAE(latent_dim=2, hidden=(8, 4)), CVAE(latent_dim=2, hidden=(8, 4))
    after = exchanged(a, b, ["decoder.2", "decoder.4"])
    for name, p in after.named_parameters():
        taken = name.startswith(("decoder.2", "decoder.4"))
        assert torch.equal(p, (b if taken else a).get_parameter(name)), name


def test_a_picture_is_recognised_if_the_judge_says_so_and_it_has_contrast(cvae, judge):
    """By a loop over the samples; also mirrored back, and by a judge who takes all for the digit."""
    z = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    for label, mirror_of in ((4, None), (8, 3), (0, 0)):
        hits = 0
        for one in z:
            picture = (cvae.generate(torch.tensor([label]), one[None]) * 255).round()
            seen = picture.view(28, 28).fliplr().reshape(1, 784) if mirror_of is not None else picture
            verdict = judge(seen / 255).argmax().item() == (label if mirror_of is None else mirror_of)
            hits += verdict and float(np.std(picture.numpy())) >= CONTRAST
        assert recognised(cvae, judge, label, z, mirror_of) == pytest.approx(hits / 40)
    always = Classifier()
    with torch.no_grad():
        always.head[1].weight.zero_(), always.head[1].bias.copy_(9 * one_hot(torch.tensor(8)))
    assert recognised(cvae, always, 8, z) > 0.9 and recognised(grey_model(cvae), always, 8, z) == 0


def test_relearning_counts_steps(cvae, judge, digits):
    images, before = digits[0].only([3])[:10][0], deepcopy(cvae.state_dict())
    grey = grey_model(cvae)
    assert relearn(cvae, judge, images, 3, 0.85) == 0
    assert relearn(grey, judge, images, 3, 0.85, limit=12, learning_rate=0.0) == 12
    damaged = deepcopy(cvae)
    with torch.no_grad():
        damaged.decoder[0].weight[:, cvae.latent_dim + 3] = 0
    assert 0 < relearn(damaged, judge, images, 3, 0.85) < 300
    assert all(torch.equal(before[name], value) for name, value in cvae.state_dict().items())


@pytest.mark.parametrize("rank", [None, 1])
def test_relearning_trains_a_copy_and_looks_at_the_same_samples(task, monkeypatch, rank):
    """Of the latents that the seed gives, whatever was drawn before; the model and what may be trained in it stay."""
    task.cvae.requires_grad_(False)
    before, seen = flat(task.cvae), []
    monkeypatch.setattr(relearning, "recognised", lambda cvae, judge, label, z, mirror_of: seen.append((cvae, z)) or 0.0)
    for _ in range(2):
        relearn(task.cvae, None, torch.rand(2, 784), 3, 0.7, rank=rank, limit=3, seed=8)
    expected = torch.randn(200, 4, generator=torch.Generator().manual_seed(8))
    assert len(seen) == 8 and all(torch.equal(z, expected) for _, z in seen)
    assert (flat(task.cvae) == before).all() and not any(p.requires_grad for p in task.cvae.parameters())
    assert not hasattr(task.cvae.decoder[0], "parametrizations") and all(cvae is not task.cvae for cvae, _ in seen)


def test_steps_are_counted_to_the_first_look_that_finds_enough(task, monkeypatch):
    """Looks after 0 to 20 steps one by one, then every 5 %; the first with at least the share counts."""
    looks, shares = [], iter([0.0] * 23 + [0.69, 0.7])
    monkeypatch.setattr(relearning, "recognised", lambda *_: looks.append(0) or next(shares))
    assert relearn(task.cvae, None, torch.rand(2, 784), 3, 0.7) == 24 and len(looks) == 25
    monkeypatch.setattr(relearning, "recognised", lambda *_: 0.0)
    assert relearn(task.cvae, None, torch.rand(2, 784), 3, 0.7, limit=45) == 45


def test_savings_teach_the_digit_and_mirror_images_under_one_label(digits):
    told = []
    found = savings(lambda images, label, share, mirror_of=None: told.append((images, label, share, mirror_of))
                    or 10 + len(told), digits[0], 6, 5, seed=2)
    assert found == {"digit": 11, "mirrored": {"4": 12, "5": 13, "7": 14, "9": 15}}     # a mirrored 6 is no stranger to a 6
    assert {(label, len(images)) for images, label, _, _ in told} == {(6, 5)}
    assert [(share, mirror_of) for _, _, share, mirror_of in told] == [(0.85, None), *((0.7, d) for d in (4, 5, 7, 9))]
    fours = digits[0].only([4])[:][0]
    picture = told[1][0][0].view(28, 28)
    assert any(torch.equal(picture.fliplr().flatten(), four) for four in fours)
    assert mirrored(mirrored(fours[:3])).equal(fours[:3]) and not mirrored(fours[:3]).equal(fours[:3])
    values = relearning_metrics({"savings": {"10": found, "100": {"digit": 8, "mirrored": {"4": 16}}}})
    assert values == {"steps, k = 10": 11, "mirrored, k = 10": 13.5, "savings, k = 10": pytest.approx(11 / 13.5),
                      "steps, k = 100": 8, "mirrored, k = 100": 16, "savings, k = 100": 0.5}


def test_adapters_change_each_matrix_by_a_low_rank_and_nothing_else(task):
    torch.manual_seed(0)
    cvae, z = with_adapters(task.cvae, 2), torch.randn(5, 4)
    y = one_hot(torch.arange(5))
    torch.testing.assert_close(cvae.decode(z, y), task.cvae.decode(z, y))
    optimizer = torch.optim.SGD([p for p in cvae.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(negative_elbo_terms(cvae, torch.rand(5, 784), y)).mean().backward()
        optimizer.step()
    for name, layer in task.cvae.named_modules():
        if isinstance(layer, torch.nn.Linear):
            change = cvae.get_submodule(name).weight.detach() - layer.weight.detach()
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 2
            assert torch.equal(cvae.get_submodule(name).bias, layer.bias)


def test_a_margin_is_trained_in_its_label_column_alone(task, monkeypatch):
    """Noise by the decoder between the two, value and gradient by hand; all else stays distilled amnesia's."""
    torch.manual_seed(3)
    cvae = CVAE(latent_dim=4, hidden=(32, 16))
    torch.manual_seed(1)
    found = noise_part_way(cvae, task, 0.6)
    torch.manual_seed(1)
    c_f = some(task.forgotten, 24).repeat(2)
    between, y = mixed(task.cvae, [cvae], [0.6]), one_hot(c_f)
    z = torch.randn(48, 4)
    expected = bernoulli_nll(between.decode(z, y), noise_pairs(48, "cpu")).mean()
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
    x = torch.cat([noise_pairs(256, "cpu"), replay(task.cvae, c_r, 0.0)])
    nelbo = sum(negative_elbo_terms(cvae, x, one_hot(torch.cat([c_f, c_r]))))
    spring = sum((task.fim[name] * 1e-4).sum() for name in task.fim)
    expected = {"forget": nelbo[:256].mean(), "remember": nelbo[256:].mean(), "protect": 100 / 256 * spring}
    torch.testing.assert_close(terms.pop("protect"), expected.pop("protect"), rtol=1e-3, atol=0)
    torch.testing.assert_close(terms, expected, rtol=1e-6, atol=0)          # replay of drawn pixels would be within 1e-3


def test_schedules_reach_the_optimizer(task, monkeypatch):
    choices = []
    monkeypatch.setattr("amnesia_studies.methods.task.fit", lambda cvae, loss, **given: choices.append(given))
    task.minimise(task.cvae, None), as_published(task)
    assert [c["schedule"] for c in choices] == ["one-cycle", "constant"]
    assert choices[1] == {"steps": 10_000, "learning_rate": 1e-4, "schedule": "constant"}


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
    assert choices == {"steps": 8000, "learning_rate": 2e-3}
    torch.manual_seed(4)
    found = loss()["remember"]
    torch.manual_seed(4)
    c = some(torch.tensor([3, 0, 1, 2, 4, 5, 6, 7, 8, 9]), 20)
    torch.testing.assert_close(found, divergence(teacher, student, c, c).mean())


def test_a_look_is_that_of_a_loop(small):
    found = look_at(small, small.cvae, n=6)
    z = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    for label in (0, 7):
        pictures = (small.cvae.generate(torch.full((6,), label), z[6 * label:6 * label + 6]) * 255).round()
        p = small.judge(pictures / 255).softmax(1).detach().double()
        assert found["P"][label] == pytest.approx(p[:, label].mean().item(), abs=1e-5)
        assert found["H"][label] == pytest.approx(-(p * p.log()).sum(1).mean().item(), abs=1e-5)
        assert found["share"][label] == pytest.approx((p.argmax(1) == label).double().mean().item())
        assert found["contrast"][label] == pytest.approx(np.mean([np.std(one.numpy()) for one in pictures]), abs=1e-3)


@pytest.fixture
def quick(small, monkeypatch):
    """The same, with 4 samples a look."""
    monkeypatch.setattr(recovery, "look_at", partial(look_at, n=4))
    return small


def test_models_that_forgot_apart_are_mixed(quick):
    """Label edits of two columns: each is whole in the sum of the edits and half in the average; and who forgot nothing
    leaves nothing to mix."""
    found = forget_apart(quick, "label edit", [0, 8], seed=1, scale=0.02, seeds_apart=1)
    zero, eight = (quick.forget("label edit", [label], seed, 0.02) for label, seed in ((0, 1), (8, 2)))
    both = deepcopy(quick.cvae)
    with torch.no_grad():
        for column, model in ((8, zero), (16, eight)):                # after eight latents, label 0 and label 8
            both.decoder[0].weight[:, column] = model.decoder[0].weight[:, column]
    for name, value in look_at(quick, both, n=4).items():
        assert found["sums"]["1.0"][name] == pytest.approx(value, abs=1e-3)
    for i, model in enumerate((zero, eight)):
        assert found["models"][i] == look_at(quick, model, n=4)
        assert found["line"][str(float(i))]["P"] == pytest.approx(look_at(quick, model, n=4)["P"], abs=1e-3)
    assert found["line"]["0.5"]["P"] == pytest.approx(found["average"]["P"], abs=1e-4)
    assert images_from_text(found["drawn"]).shape == (30, 28, 28)
    nothing = forget_apart(quick, "original", [0, 8])
    for name, value in look_at(quick, quick.cvae, n=4).items():
        for mix in (nothing["average"], nothing["sums"]["2.0"], nothing["line"]["0.3"]):
            assert mix[name] == pytest.approx(value, abs=1e-3)


def test_altered_weights_are_looked_at(quick):
    found = forget_and_alter(quick, "label edit", [4], seed=1, scale=0.02)
    model = quick.forget("label edit", [4], 1, 0.02)
    expected = {"0.0": quick.cvae, "1.0": model, "0.5": mixed(quick.cvae, [model], [0.5])}
    for share, between in expected.items():
        assert found["line"][share]["H"] == pytest.approx(look_at(quick, between, n=4)["H"], abs=1e-3)
    assert found["rounded"]["4"] == look_at(quick, rounded(model, 4), n=4)
    assert found["exchanged"]["decoder.0"]["P"] == found["line"]["0.0"]["P"]        # the edit is in that layer alone
    assert found["exchanged"]["decoder.4"]["P"] == found["line"]["1.0"]["P"]
    assert found["turned"]["P"] != found["line"]["1.0"]["P"]
    assert images_from_text(found["drawn"]).shape == (len(found["line"]), 28, 28)


def test_originals_of_other_seeds_are_mixed(quick, monkeypatch):
    seeds = []
    monkeypatch.setattr(recovery, "train_from_scratch", lambda task, digits: seeds.append((task.seed, len(digits)))
                        or task.cvae)
    found = originals_apart(quick, [0, 8], seed=3)
    assert seeds == [(3, len(quick.train)), (4, len(quick.train))] and len(found["models"]) == 2


def test_relearning_says_all_there_is_to_say(quick):
    plain, adapted = (forget_and_relearn(quick, "label edit", [4], seed=1, scale=0.005, rank=rank) for rank in (None, 1))
    assert plain["savings"].keys() == adapted["savings"].keys() == {"10", "100"}
    assert plain["savings"]["10"]["mirrored"].keys() == {"5", "6", "7", "9"}


def test_adapters_are_trained_at_ten_times_the_rate(quick, monkeypatch):
    told = []
    monkeypatch.setattr(recovery, "savings", lambda learn, *_: told.append(learn.keywords))
    for rank in (None, 4):
        forget_and_relearn(quick, "original", [4], seed=1, rank=rank)
    plain, adapted = {"limit": 1000, "seed": 1}, {"rank": 4, "learning_rate": 1e-2, "limit": 1000, "seed": 1}
    assert told == [plain, plain, adapted, adapted]


def test_looks_are_means_over_labels():
    """By hand, for two labels forgotten of ten."""
    look = {"share": [0.2, *[0.9] * 7, 0.4, 0.5], "P": [0.1] * 10, "H": list(range(10)), "contrast": [30.0] * 10}
    result = {"average": look, "sums": {"1.0": look}}
    values = mixed_metrics(result, [0, 8], None)
    assert values["average"] == pytest.approx(0.3) and values["average, kept"] == pytest.approx((7 * 0.9 + 0.5) / 8)
    assert values["average, P(8)"] == values["average, P(0)"] == 0.1
    assert values["sum × 1.0, H"] == 4 and values["average, contrast"] == 30
    altered = altered_metrics({"line": {"0.5": look}, "rounded": {"8": look}, "exchanged": {"decoder.0": look},
                               "turned": look}, [8], None)
    assert altered["0.5 of the way"] == altered["8 bits"] == altered["decoder.0"] == altered["turned"] == 0.4
    assert altered["0.5 of the way, kept"] == pytest.approx((0.2 + 7 * 0.9 + 0.5) / 9)
