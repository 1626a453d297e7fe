"""The figures of a model: what the judge says of its samples, how far its bound on log p(x|c) has sunk."""

import math
from copy import deepcopy

import torch

from amnesia import ask, bernoulli_nll, entropy, fit, model_metrics

from .denoiser import nats, sample_all


def score(experiment, model, forget, seed=0):
    """The figures of evaluation-<digits>.json; recall, a mean over kept labels; and a look() at each label."""
    (forgotten, kept), n = experiment.split(forget), experiment.samples
    samples, test = sample_all(model, n, seed), experiment.test
    seen = ask(experiment.judge, samples)
    features, real = seen[1].view(model.classes, n, -1), experiment.real[1]
    recalls = [recall(features[label], real[test.mask([label]).cpu()]) for label in kept]
    bounds = [experiment.bound(model, test.only(labels)) for labels in (kept, forgotten)]
    return {**model_metrics(samples.view(model.classes, n, -1), seen, real[test.mask(kept).cpu()], bounds, forgotten, kept),
            "recall": sum(recalls) / len(kept), **look(seen[0], samples)}


def look_at(experiment, model):
    """look() at some samples of each label, as many as the experiment takes for one: always from the same z."""
    samples = sample_all(model, experiment.looked_at)
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


def recall(samples, real, k=3):
    """The share of real features (M, D) that lie within the k-nearest-neighbour balls of those of samples (N, D): what of the
    real variety is drawn (Kynkaanniemi et al. 2019). Low recall is mode collapse."""
    radii = torch.cdist(samples, samples).kthvalue(min(k + 1, len(samples)), 1).values   # + 1: each is its own nearest
    return (torch.cdist(real, samples) <= radii).any(1).float().mean().item()


def tight_bounds(experiment, cvae, forget, scale=1.0):
    """Means over real test images, nats: the 64-sample bound of forgotten labels and of 2,000 kept images, and the 64-sample
    bound of forgotten labels after refitting the encoder to the frozen decoder on real images."""
    gone, rest = map(experiment.test.only, experiment.split(forget))
    rest = rest.of(rest.images[:2000], rest.labels[:2000])
    refitted = refit_encoder(cvae, experiment.train.only(forget), steps=max(1, round(600 * scale)))
    bounded = {"forgotten_iw": (cvae, gone), "kept_iw": (cvae, rest), "forgotten_refitted_iw": (refitted, gone)}
    return {name: importance_weighted_bound(*pair).mean().item() for name, pair in bounded.items()}


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


def refit_encoder(cvae, digits, steps=600, batch_size=128, seed=0):
    """A copy of `cvae` with the same decoder and an encoder trained on to explain `digits`: what the decoder still knows.

    The bound of a model whose encoder was led astray may be low although its decoder could draw the image.
    """
    cvae, digits = deepcopy(cvae), digits.of(digits.images, digits.labels)                     # with a shuffle of its own
    cvae.decoder.requires_grad_(False)
    torch.manual_seed(seed)
    fit(cvae, lambda: {"nelbo": nats(cvae, *digits.batch(batch_size)).mean()}, steps=steps, learning_rate=2e-3)
    return cvae.requires_grad_()
