"""The ELBO against torch.distributions, in float64."""

import torch
from cells import code
from torch.distributions import Bernoulli, Normal, kl_divergence

from amnesia import CVAE, edits, negative_elbo_terms, one_hot


def test_elbo_terms_are_the_definition(cvae):
    cvae.double()
    x, y = torch.rand(6, 784, dtype=torch.float64), one_hot(torch.arange(6)).double()
    noise = torch.randn(6, 4, dtype=torch.float64)
    mean, log_var = cvae.encode(x, y)
    q = Normal(mean, (log_var / 2).exp())
    p = Bernoulli(logits=cvae.decode(mean + q.scale * noise, y), validate_args=False)
    reconstruction, kl = negative_elbo_terms(cvae, x, y, noise)
    torch.testing.assert_close(reconstruction, -p.log_prob(x).sum(1))
    torch.testing.assert_close(kl, kl_divergence(q, Normal(0, 1)).sum(1))
    assert (kl > 0).all()


def test_the_encoder_can_be_shown_less_than_the_likelihood_scores(cvae):
    x, y, noise = torch.rand(3, 784), one_hot(torch.arange(3)), torch.zeros(3, 4)
    reconstruction, kl = negative_elbo_terms(cvae, x, y, noise, seen=torch.zeros_like(x))
    torch.testing.assert_close(kl, negative_elbo_terms(cvae, torch.zeros_like(x), y, noise)[1])
    logits = cvae.decode(cvae.encode(torch.zeros_like(x), y)[0], y)
    torch.testing.assert_close(reconstruction, -Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(1))


def test_the_architecture_is_the_papers():
    shapes = [tuple(p.shape) for p in CVAE().parameters() if p.ndim == 2]
    assert shapes == [(512, 794), (256, 512), (16, 256), (256, 18), (512, 256), (784, 512)]


def test_config_rebuilds_the_model(cvae):
    rebuilt = CVAE(**cvae.config)
    rebuilt.load_state_dict(cvae.state_dict())


def test_generate_is_the_bernoulli_mean(cvae):
    z, labels = torch.randn(5, 4), torch.tensor([0, 3, 3, 9, 1])
    torch.testing.assert_close(cvae.generate(labels, z), torch.sigmoid(cvae.decode(z, one_hot(labels))))
    assert not cvae.generate(labels).requires_grad


def test_an_edited_model_is_told_from_the_helper_s_and_takes_no_random_numbers():
    class Smooth(CVAE):
        def __init__(self, *widths):
            super().__init__(*widths)
            self.decoder[1] = torch.nn.GELU()

    class Clamped(CVAE):
        def encode(self, x, y):
            mean, log_var = super().encode(x, y)
            return mean, log_var.clamp(-6, 2)

    class Narrow(CVAE):
        @property
        def config(self):
            return {"width": 5}

    models = [cls(*widths) for cls, widths in ((CVAE, ()), (CVAE, (2,)), (CVAE, (8, (64, 32))), (Smooth, ()), (Clamped, ()),
                                               (Narrow, (8, (5,))))]
    before = torch.get_rng_state()
    same, small, widths, *edited = map(edits, models)
    assert torch.equal(before, torch.get_rng_state())
    assert (same, small, widths) == ({}, {}, {"hidden": [64, 32]})
    assert all(found.keys() == {"edited"} for found in edited) and len({str(found) for found in edited}) == 3
    assert edits(Smooth()) == edited[0]                                 # whatever the weights


def test_the_model_in_notebook_01_is_the_helper_s():
    """The two cells can be edited; as they are committed, they compute what every other notebook builds."""
    first, second = (source for source in code("01_train_cvae") if "def mlp(" in source or "class CVAE(" in source)
    names = {"torch": torch, "one_hot": one_hot}
    exec(f"{first}\n{second}", names)
    for settings in ({}, {"latent_dim": 2, "hidden": (64, 32)}):
        torch.manual_seed(0)
        theirs, ours = names["CVAE"](**settings), CVAE(**settings)
        assert edits(theirs) == edits(ours) and theirs.config == ours.config
        ours.load_state_dict(theirs.state_dict())
        x, y, labels = torch.rand(10, 784), torch.eye(10), torch.arange(10)
        torch.manual_seed(1)
        expected = [*ours.encode(x, y), ours.generate(labels)]
        torch.manual_seed(1)
        for found, wanted in zip([*theirs.encode(x, y), theirs.generate(labels)], expected, strict=True):
            assert torch.equal(found, wanted)
