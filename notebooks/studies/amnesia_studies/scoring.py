"""The figures of a model: what the judge says of its samples, how far its bound on log p(x|c) has sunk."""

import math
from copy import deepcopy

import torch

from amnesia.data import one_hot
from amnesia.evaluation import ask, entropy, model_metrics
from amnesia.models import bernoulli_nll
from amnesia.training import fit

from .denoiser import draw, nats


def sample_all(model, n, seed=0):
    """n samples of each label in turn, bytes (K n, P), from noise or latents by the seed: the same for every model."""
    device = next(model.parameters()).device
    labels = torch.arange(model.classes, device=device).repeat_interleave(n)
    z = torch.randn(len(labels), model.latent_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    return draw(model, z, one_hot(labels, model.classes))


def score(experiment, model, forget, seed=0):
    """The figures of evaluation-<digits>.json; precision and recall, means over kept labels; and a look() at each label."""
    (forgotten, kept), n = experiment.split(forget), experiment.samples
    samples = sample_all(model, n, seed)
    seen = ask(experiment.judge, samples)
    features = seen[1].view(model.classes, n, -1)
    pairs = [precision_recall(features[label], experiment.real_features[label]) for label in kept]
    precision, recall = (sum(values) / len(kept) for values in zip(*pairs, strict=True))
    return {**model_metrics(experiment.judge, samples.view(model.classes, n, -1), model, experiment.test, forgotten, kept,
                            real=experiment.real, seen=seen, bound=experiment.bound),
            "precision": precision, "recall": recall, **look(seen[0], samples)}


def look_at(experiment, model, n=None):
    """look() at n samples of each label, by default as many as the experiment takes for one: always from the same z."""
    samples = sample_all(model, n or experiment.looked_at)
    return look(ask(experiment.judge, samples)[0], samples)


def look(probabilities, samples):
    """What the judge's probabilities (10 n, 10) say of the samples (10 n, 784) of each label in turn: {"P", "H", "share",
    "contrast"}, a list of ten each: mean probability of the label, mean entropy, share whose most likely label it is, mean
    sd of a picture's pixels in grey levels."""
    classes = probabilities.shape[1]
    labels = torch.arange(classes).repeat_interleave(len(samples) // classes)
    values = {"P": probabilities.gather(1, labels[:, None]), "H": entropy(probabilities),
              "share": (probabilities.argmax(1) == labels).float(),
              "contrast": samples.float().std(1, correction=0).cpu()}
    return {name: value.view(classes, -1).mean(1).tolist() for name, value in values.items()}


def precision_recall(samples, real, k=3):
    """(precision, recall) of features (N, D) against real ones (M, D): the share of each set that lies within the other's
    k-nearest-neighbour balls (Kynkaanniemi et al. 2019). Low recall is mode collapse, low precision is unreal samples."""
    def share_inside(points, others):
        radii = torch.cdist(others, others).kthvalue(min(k + 1, len(others)), 1).values  # + 1: each is its own nearest
        return (torch.cdist(points, others) <= radii).any(1).float().mean().item()

    return share_inside(samples, real), share_inside(real, samples)


def tight_bounds(experiment, cvae, forget, scale=1.0):
    """Means over real test images, nats: the 64-sample bound of forgotten labels and of 2,000 kept images, and the 64-sample
    bound of forgotten labels after refitting the encoder to the frozen decoder on real images."""
    forgotten, kept = experiment.split(forget)
    gone, rest = experiment.test.only(forgotten), experiment.test.only(kept)
    rest.images, rest.labels = rest.images[:2000], rest.labels[:2000]
    refitted = refit_encoder(cvae, experiment.train.only(forgotten), steps=max(1, round(600 * scale)))
    return {"forgotten_iw": importance_weighted_bound(cvae, gone).mean().item(),
            "kept_iw": importance_weighted_bound(cvae, rest).mean().item(),
            "forgotten_refitted_iw": importance_weighted_bound(refitted, gone).mean().item()}


@torch.no_grad()
def importance_weighted_bound(cvae, digits, k=64, seed=0, batch_size=100):
    """log 1/k sum_k p(x,z_k|c) / q(z_k|x,c) for each image of `digits`, (N,) nats on the CPU (Burda et al. 2016, Eq. 8).

    A tighter lower bound on log p(x|c) than the ELBO: it rises with k, from the ELBO at k = 1 to log p(x|c), and so depends
    less on the encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for index in torch.arange(len(digits), device=digits.images.device).split(batch_size):
        x, y = digits[index]                                                       # (B, 784), (B, 10)
        mean, log_var = (part.repeat_interleave(k, 0) for part in cvae.encode(x, y))
        noise = torch.randn(mean.shape, generator=generator).to(x.device)          # (B k, latent_dim)
        z = mean + noise * (log_var / 2).exp()
        log_ratio = (z.square() - noise.square() - log_var).sum(1) / 2             # log q(z|x,c) - log p(z)
        nll = bernoulli_nll(cvae.decode(z, y.repeat_interleave(k, 0)), x.repeat_interleave(k, 0))
        values.append((-nll - log_ratio).view(-1, k).logsumexp(1).cpu() - math.log(k))
    return torch.cat(values)


def refit_encoder(cvae, digits, steps=600, seed=0):
    """A copy of `cvae` with the same decoder and an encoder trained on to explain `digits`: what the decoder still knows.

    The bound of a model whose encoder was led astray may be low although its decoder could draw the image.
    """
    frozen = deepcopy(cvae)
    frozen.decoder.requires_grad_(False)
    return fine_tune(frozen, digits, steps, learning_rate=2e-3, seed=seed)


def fine_tune(cvae, digits, steps=1000, batch_size=128, learning_rate=1e-3, seed=0):
    """A copy of `cvae` after so many steps of the negative ELBO of `digits`; parameters that need no gradient stay."""
    cvae, digits = deepcopy(cvae), digits.of(digits.images, digits.labels)                     # with a shuffle of its own
    torch.manual_seed(seed)
    fit(cvae, lambda: {"nelbo": nats(cvae, *digits.batch(batch_size)).mean()}, steps=steps, learning_rate=learning_rate)
    return cvae.requires_grad_()
