"""The objective, term by term: what a loss is worth and where it pulls, against torch.distributions in float64 on the very
images, labels and latents that it drew. Notebook 03's cells and notebook 01's; test_methods.py has the studies' methods."""

from copy import deepcopy

import pytest
import torch
from cells import run_here
from scipy.stats import chisquare
from torch.distributions import Bernoulli, Normal, kl_divergence

import amnesia
from amnesia import Stage, Workspace, diagonal_fisher


class Watched:
    """A CVAE and a copy in float64; the rows of all that it has been asked and told since: encoded (x, y, noise to come),
    decoded (z, y, logits)."""

    def __init__(self, cvae):
        self.cvae, self.exact = cvae, deepcopy(cvae).double()
        self.exact.requires_grad_()
        self.encoded, self.decoded = [], []
        for name, calls in (("encode", self.encoded), ("decode", self.decoded)):
            setattr(cvae, name, self.watching(getattr(cvae, name), calls))

    @staticmethod
    def watching(function, calls):
        def call(values, y):
            result = function(values, y)
            answers = result if isinstance(result, tuple) else [result]
            calls.append([part.detach().double() for part in (values, y, *answers)])
            return result
        return call

    @staticmethod
    def told(calls, labels):
        """The rows whose label vector points to one of these labels: values, label vectors and answers."""
        chosen = [[part[torch.isin(call[1].argmax(1), labels)] for part in call] for call in calls]
        return [torch.cat(parts) for parts in zip(*chosen, strict=True)]

    def asked(self, z):
        """The label vectors under which these latents were decoded, and the mean images that came out."""
        rows = {tuple(row.tolist()): (y, logits.sigmoid())
                for call in self.decoded for row, y, logits in zip(*call, strict=True)}
        return [torch.stack(parts) for parts in zip(*(rows[tuple(row.tolist())] for row in z), strict=True)]


def nll(cvae, z, y, x):
    return -Bernoulli(logits=cvae.decode(z, y), validate_args=False).log_prob(x).sum(1)


def elbo_terms(model, labels, x=None):
    """Reconstruction and KL of the images that were encoded under these labels, (n,) each; x: what the likelihood scores, if
    it is something else."""
    (shown, y, mean, log_var), (z, also, _) = (model.told(calls, labels) for calls in (model.encoded, model.decoded))
    assert torch.equal(y, also)
    mean_exact, log_var_exact = model.exact.encode(shown, y)
    q = Normal(mean_exact, (log_var_exact / 2).exp())
    noise = (z - mean) / (log_var / 2).exp()
    assert noise.mean().abs() < 0.2 and 0.8 < noise.std() < 1.2         # one draw of q for each image
    reconstruction = nll(model.exact, mean_exact + q.scale * noise, y, shown if x is None else x)
    return reconstruction, kl_divergence(q, Normal(0, 1)).sum(1)


def divergence(original, model, labels):
    """(decoder, encoder): KL from the frozen copy, asked what it was asked, to the model, told these labels: (n,) each."""
    (z, told, _), (x, also, *_) = model.told(model.decoded, labels), model.told(model.encoded, labels)
    (asked, _), exact = original.asked(z), original.exact
    mean_image = exact.decode(z, asked).sigmoid().detach()
    assert torch.equal(told, also) and (x - mean_image).abs().max() < 1e-5
    assert z.mean().abs() < 0.15 and 0.85 < z.std() < 1.15              # of the prior
    pixels = [Bernoulli(logits=cvae.decode(z, y)) for cvae, y in ((exact, asked), (model.exact, told))]
    latents = [Normal(mean, (log_var / 2).exp()) for mean, log_var in
               (exact.encode(mean_image, asked), model.exact.encode(mean_image, told))]
    return [kl_divergence(*pair).sum(1) for pair in (pixels, latents)]


def spring(original, model, fim, lam):
    return lam / 2 * sum((fim[name].double() * (p - old.detach()).square()).sum() for (name, p), old in
                         zip(model.exact.named_parameters(), original.exact.parameters(), strict=True))


def pull(value, cvae):
    """The gradient in every weight."""
    weights = list(cvae.parameters())
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double()
                      for p, g in zip(weights, gradients, strict=True)])


def assert_terms(terms, expected, model):
    """The same names in the same order, the same values, and the same gradients."""
    assert list(terms) == list(expected)
    for name in terms:
        assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-4), name
        pulls = [pull(terms[name], model.cvae), pull(expected[name], model.exact)]
        assert (pulls[0] - pulls[1]).norm() <= 1e-3 * pulls[1].norm() + 1e-6, f"{name} pulls elsewhere"


def moved(cvae, by=0.1):
    """The model after some training, as it were: each weight a little elsewhere."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in cvae.parameters():
            p += by * p.std() * torch.randn(p.shape, generator=generator)
    return cvae.requires_grad_()


@pytest.fixture(scope="module")
def notebook_03(tmp_path_factory):
    """notebook_03(**parameters): what its cells define up to the loss, with a model on its way; (names, original, model)."""
    def define(**parameters):
        workspace = str(tmp_path_factory.mktemp("03"))
        names = run_here("03_forget", "def loss():", workspace=workspace, forget=[3, 8], **parameters)
        names["cvae"] = moved(deepcopy(names["original"]))
        torch.manual_seed(1)
        return names, Watched(names["original"]), Watched(names["cvae"])

    return define


FORGOTTEN, KEPT = torch.tensor([3, 8]), torch.tensor([0, 1, 2, 4, 5, 6, 7, 9])


def assert_drawn_alike(y, labels):
    """Each of the labels about equally often, and no other."""
    counts = y.argmax(1).bincount(minlength=10)
    assert counts.sum() == counts[labels].sum() and (len(labels) == 1 or chisquare(counts[labels]).pvalue > 1e-4), counts


def different(rows):
    return len({row.numpy().tobytes() for row in rows})


def assert_noise_pairs(x, y):
    """Uniform noise, each image and its negative under the same label."""
    (one, other), labels = x.chunk(2), y.chunk(2)
    torch.testing.assert_close(one + other, torch.ones_like(one), rtol=0, atol=1e-6)
    assert torch.equal(*labels)
    assert abs(one.mean() - 1 / 2) < 0.01 and abs(one.var() - 1 / 12) < 0.005 and different(one) == len(one)


@pytest.mark.parametrize("surrogate", ["noise", 7])
@pytest.mark.parametrize("remember", ["distil", "replay"])
def test_notebook_03(notebook_03, remember, surrogate):
    names, original, model = notebook_03(remember=remember, surrogate=surrogate, lam=0.7, gamma=0.6, batch_size=80)
    terms = names["loss"]()
    if surrogate == "noise":
        x, y, *_ = model.told(model.encoded, FORGOTTEN)
        assert_noise_pairs(x, y)
        forget = sum(elbo_terms(model, FORGOTTEN))
    elif remember == "distil":
        forget = sum(divergence(original, model, FORGOTTEN))
        assert_drawn_alike(original.asked(model.told(model.decoded, FORGOTTEN)[0])[0], torch.tensor([7]))
    else:
        forget = sum(elbo_terms(model, FORGOTTEN))
    rehearsed = sum(elbo_terms(model, KEPT)) if remember == "replay" else sum(divergence(original, model, KEPT))
    assert (len(forget), len(rehearsed)) == (48, 80)
    fim = names["fim_file"].state
    assert_terms(terms, {"forget": forget.mean(), "remember": 0.6 * rehearsed.mean(),
                         "protect": spring(original, model, fim, 0.7)}, model)
    if remember == "replay":                                            # what is shown is what the frozen copy draws
        drawn = torch.cat([logits.sigmoid() for _, y, logits in original.decoded])
        asked = torch.cat([y for _, y, _ in original.decoded]).argmax(1)
        shown, told, *_ = model.told(model.encoded, KEPT)
        assert torch.equal(asked[-80:], told.argmax(1)) and (shown - drawn[-80:]).abs().max() < 1e-6
        assert torch.cat([z for z, *_ in original.decoded]).std() == pytest.approx(1, abs=0.15)
        assert (asked[:-80] == 7).all() and (len(asked) - 80 == (0 if surrogate == "noise" else 48))


def test_notebook_03_trains_by_what_is_set_when_it_trains(notebook_03):
    """As its file then records: a reader may edit, run the stage's cell again, and go straight to the one that trains."""
    names, original, model = notebook_03()
    names |= {"remember": "replay", "surrogate": 7}
    forget, remember, _ = names["loss"]().values()
    assert torch.equal(original.decoded[0][1].argmax(1), torch.full([48], 7))
    for term, labels in ((forget, FORGOTTEN), (remember, KEPT)):
        assert term.item() == pytest.approx(sum(elbo_terms(model, labels)).mean().item(), rel=1e-4)


def test_notebook_03_draws_anew_at_every_step_and_every_label_alike(notebook_03):
    names, original, model = notebook_03()
    with torch.no_grad():
        for _ in range(8):
            names["loss"]()
    (x, y, *_), (z, told, _) = model.told(model.encoded, FORGOTTEN), model.told(model.decoded, KEPT)
    assert_drawn_alike(y[::2], FORGOTTEN), assert_drawn_alike(told, KEPT)
    assert (different(x), different(z)) == (8 * 48, 8 * 96)
    asked, _ = original.asked(z)
    assert torch.equal(asked, told)


@pytest.mark.parametrize(("remember", "held"), [("distil", [0, 1, 2, 4, 5, 6, 7, 8, 9]),
                                                ("replay", [1, 2, 4, 5, 6, 7, 8, 9])])
def test_notebook_03_holds_grey_what_was_forgotten_before_and_does_not_rehearse_it(tmp_path, cvae, remember, held):
    store = Workspace(tmp_path)
    amnesiac = store.load("amnesiac-0.pt")
    fim = {name: torch.ones_like(value) for name, value in amnesiac.state.items()}
    Stage(store, "fim-amnesiac-0.pt", {"dataset": "MNIST"}, [amnesiac]).save(state=fim, config={}, metrics={})
    names = run_here("03_forget", "def loss():", workspace=str(tmp_path), model="amnesiac-0", forget=[3], remember=remember)
    assert names["labels_forgotten"].tolist() == [3] and sorted(names["labels_kept"].tolist()) == held
    assert names["stage"].path.name == "amnesiac-0-3.pt" and names["settings"]()["forgotten_before"] == [0]


def test_notebook_01_scores_the_whole_image_and_shows_the_encoder_less(tmp_path, few, monkeypatch):
    monkeypatch.setattr(amnesia, "load_digits", lambda *_: few)
    monkeypatch.setattr(amnesia, "grow", lambda digits, seed: digits)
    names = run_here("01_train_cvae", "stage.save(", workspace=str(tmp_path), steps=1, batch_size=64, dropout=0.2)
    batch, drawn = names["examples"].batch, []
    names["examples"].batch = lambda size: drawn.append(batch(size)) or drawn[-1]
    names["cvae"] = moved(names["cvae"])
    model = Watched(names["cvae"])
    terms, (x, y) = names["loss"](), drawn[0]
    shown, told, *_ = model.encoded[0]
    seen = shown[x > 0] / x[x > 0]
    assert torch.equal(told, y.double()) and 0.15 < (seen == 0).double().mean() < 0.25
    torch.testing.assert_close(seen[seen > 0], torch.full_like(seen[seen > 0], 1 / 0.8), rtol=1e-5, atol=0)
    reconstruction, kl = elbo_terms(model, torch.arange(10), x.double())
    assert_terms(terms, {"reconstruction": reconstruction.mean(), "kl": kl.mean()}, model)


def test_the_fisher_information_of_chosen_labels_is_of_them_alone(cvae):
    """No image of another label, so nothing flows through another label's weights; and each of them alike."""
    fim = diagonal_fisher(cvae, 400, labels=FORGOTTEN)
    columns = fim["decoder.0.weight"][:, cvae.latent_dim:].sum(0), fim["encoder.0.weight"][:, 784:].sum(0)
    for column in columns:
        assert column.nonzero().flatten().tolist() == FORGOTTEN.tolist()
        assert 0.5 < column[3] / column[8] < 2
