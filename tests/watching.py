"""What a loss has drawn, and what it is then worth: for tests of objectives, term by term, against torch.distributions in
float64 on the very images, labels and latents."""

from copy import deepcopy

import pytest
import torch
from scipy.stats import chisquare
from torch.distributions import Bernoulli, Normal, kl_divergence

FORGOTTEN, KEPT = torch.tensor([3, 8]), torch.tensor([0, 1, 2, 4, 5, 6, 7, 9])


class Watched:
    """A CVAE and a copy in float64; the rows of all that it has been asked and told since: encoded (x, y, noise to come),
    decoded (z, y, logits)."""

    def __init__(self, cvae):
        self.cvae, self.exact = cvae, deepcopy(cvae).double().requires_grad_()
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
    assert not len(x) or (torch.equal(told, also) and (x - mean_image).abs().max() < 1e-5)        # the decoder's half shows none
    assert z.mean().abs() < 0.15 and 0.85 < z.std() < 1.15              # of the prior
    pixels = [Bernoulli(logits=cvae.decode(z, y)) for cvae, y in ((exact, asked), (model.exact, told))]
    latents = [Normal(mean, (log_var / 2).exp()) for mean, log_var in
               (exact.encode(mean_image, asked), model.exact.encode(mean_image, told))]
    return [kl_divergence(*pair).sum(1) for pair in (pixels, latents)]


def spring(original, model, fim, lam):
    return lam / 2 * sum((fim[name].double() * (p - old.detach()).square()).sum() for (name, p), old in
                         zip(model.exact.named_parameters(), original.exact.parameters(), strict=True))


def flat(tensors):
    """All numbers of some tensors, in one row."""
    return torch.cat([one.detach().flatten() for one in tensors])


def pull(value, cvae):
    """The gradient in every weight."""
    return flat(torch.autograd.grad(value, list(cvae.parameters()), retain_graph=True, materialize_grads=True)).double()


def assert_terms(terms, expected, model):
    """The same names in the same order, the same values, and the same gradients."""
    assert list(terms) == list(expected)
    for name in terms:
        assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-4), name
        pulls = pull(terms[name], model.cvae), pull(expected[name], model.exact)
        assert (pulls[0] - pulls[1]).norm() <= 1e-3 * pulls[1].norm() + 1e-6, f"{name} pulls elsewhere"


def moved(cvae, by=0.1):
    """The model after some training, as it were: each weight a little elsewhere."""
    generator = torch.Generator().manual_seed(7)
    for p in cvae.parameters():
        p.data += by * p.std() * torch.randn(p.shape, generator=generator)
    return cvae.requires_grad_()


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
