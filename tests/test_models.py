"""The ELBO against torch.distributions, in float64; the model, which exists once."""

import pytest
import torch
from cells import code, execute
from torch.distributions import Bernoulli, Normal, kl_divergence

from amnesia import CVAE, elbo, negative_elbo_terms, one_hot


def test_elbo_terms_are_the_definition(cvae):
    """And the encoder can be shown less than the likelihood scores."""
    cvae.double()
    x, y = torch.rand(6, 784, dtype=torch.float64), one_hot(torch.arange(6), 10).double()
    noise = torch.randn(6, 4, dtype=torch.float64)
    for seen in (None, x.round()):
        mean, log_var = cvae.encode(x if seen is None else seen, y)
        q = Normal(mean, (log_var / 2).exp())
        p = Bernoulli(logits=cvae.decode(mean + q.scale * noise, y), validate_args=False)
        reconstruction, kl = negative_elbo_terms(cvae, x, y, noise, seen)
        torch.testing.assert_close(reconstruction, -p.log_prob(x).sum(1))
        torch.testing.assert_close(kl, kl_divergence(q, Normal(0, 1)).sum(1))
        assert (kl > 0).all()


def test_the_elbo_of_pictures_has_the_same_noise_for_every_model(cvae, few):
    noise = torch.randn(len(few[1]), 4, generator=torch.Generator().manual_seed(0))
    expected = -sum(negative_elbo_terms(cvae, *few[1][:], noise)).detach()
    torch.testing.assert_close(elbo(cvae, few[1]), expected)


def test_large_logits_cost_what_they_should_and_a_decoder_of_another_shape_is_told(cvae):
    """No rounded 0 meets a logarithm; and what the decoder answers is not broadcast."""
    with torch.no_grad():
        cvae.decoder[-1].weight.zero_()
        cvae.decoder[-1].bias.fill_(200.0)
    reconstruction, _ = negative_elbo_terms(cvae, torch.zeros(1, 784), one_hot(torch.tensor([3]), 10))
    assert reconstruction.item() == 200 * 784
    decode = cvae.decode
    cvae.decode = lambda z, y: decode(z, y)[:, None]
    with pytest.raises(ValueError, match="decode"):
        negative_elbo_terms(cvae, torch.zeros(2, 784), torch.eye(10)[:2])


def test_generate_is_the_bernoulli_mean_and_a_start_is_the_average(cvae):
    z, labels = torch.randn(5, 4), torch.tensor([0, 3, 3, 9, 1])
    torch.testing.assert_close(cvae.generate(labels, z), torch.sigmoid(cvae.decode(z, one_hot(labels, 10))))
    assert not cvae.generate(labels).requires_grad
    average = torch.rand(784) * 0.8 + 0.1
    with torch.no_grad():
        cvae.decoder[-1].weight.zero_()
    cvae.start_at(average)
    torch.testing.assert_close(cvae.generate(labels, z), average.expand(5, -1))


def test_the_model_in_notebook_01_is_the_helper_s_and_the_papers():
    """Its cell is there to be edited; as it is committed, it is what the other notebooks build."""
    cell, models = next(source for source in code("01_train_cvae") if "class CVAE(" in source), []
    for cls in (CVAE, execute([cell])["CVAE"]):
        torch.manual_seed(0)
        models.append(cls(3, (3, 8, 9), 5, (20,)))
        models[-1].start_at(torch.linspace(0.1, 0.9, 216))
    assert models[0].config == models[1].config and CVAE(**models[0].config).load_state_dict(models[1].state_dict())
    x, z, labels = torch.rand(5, 216), torch.randn(5, 3), torch.arange(5)
    encoded, decoded, drawn = zip(*((torch.cat(model.encode(x, torch.eye(5)), 1), model.decode(z, torch.eye(5)),
                                     model.generate(labels, z)) for model in models), strict=True)
    assert torch.equal(*encoded) and torch.equal(*decoded) and torch.equal(*drawn)
    shapes = [tuple(p.shape) for p in CVAE().parameters() if p.ndim == 2]
    assert shapes == [(512, 794), (256, 512), (16, 256), (256, 18), (512, 256), (784, 512)]
