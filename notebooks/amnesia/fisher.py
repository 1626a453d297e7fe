"""The diagonal Fisher information of every weight, without a loop over images; and the EWC penalty made of it."""

from collections import Counter

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from .models import negative_elbo_terms, one_hot

ROOM = 2**25  # numbers that gradients of single samples may take at a time: 128 MB in float32


class NegativeELBO(nn.Module):
    """The negative ELBO of a batch as a module's forward, which functional_call can give other weights."""

    def __init__(self, cvae):
        super().__init__()
        self.cvae = cvae

    def forward(self, x, y, noise):
        """Nats, summed over images x (B, P) with one-hot labels y (B, K) and standard normal noise (B, latent_dim)."""
        return sum(negative_elbo_terms(self.cvae, x, y, noise)).sum()


def squared_gradients(cvae, x, y, noise):
    """The sum over samples of each squared per-sample gradient of the ELBO: a dict like the model's parameters.

    For a linear layer, sample i's weight gradient is the outer product of delta_i (the ELBO's gradient at the layer's
    output) and a_i (its input), so the sum of squares over samples is (delta^2)^T (a^2): a matrix product, with no
    gradient per sample ever stored. Every other weight goes the general way, torch.func's vmap of grad, some samples at a
    time.

    x: (B, P); y: (B, K); noise: (B, latent_dim). Raises ValueError for batch normalisation in training mode, which mixes
    samples: one sample's gradient then depends on the others.
    """
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in cvae.modules()):
        raise ValueError("Batch normalisation mixes the samples of a batch: call model.eval() first.")
    owners = Counter(p for _, p in cvae.named_parameters(remove_duplicate=False))       # a shared weight has two
    calls = {layer: [] for layer in cvae.modules()
             if type(layer) is nn.Linear and all(owners[p] == 1 for p in layer.parameters())}

    def note(layer, args, output):
        if layer in calls:
            calls[layer].append((args[0].detach(), output))

    with nn.modules.module.register_module_forward_hook(note):
        total = NegativeELBO(cvae)(x, y, noise)
    once = {layer: found[0] for layer, found in calls.items() if len(found) == 1 and found[0][0].ndim == 2}     # on flat rows
    # Each sample's ELBO depends on its own row alone, so the gradient of the sum holds one sample's gradient in a row.
    deltas = torch.autograd.grad(total, [output for _, output in once.values()]) if once else ()
    squares = {}
    for (layer, (a, _)), delta in zip(once.items(), deltas, strict=True):
        squares[layer.weight] = delta.square().T @ a.square()
        squares[layer.bias] = delta.square().sum(0)
    rest = {name: p for name, p in cvae.named_parameters() if p not in squares}
    others = one_by_one(cvae, rest, x, y, noise) if rest else {}
    return {name: squares.get(p, others.get(name)) for name, p in cvae.named_parameters()}


@torch.no_grad()
def one_by_one(cvae, weights, x, y, noise):
    """The same sums for these weights, whatever layer they are of, by a gradient for each sample, some at a time."""
    def of_one(weights, x, y, noise):
        own = {f"cvae.{name}": value for name, value in weights.items()}
        return functional_call(NegativeELBO(cvae), own, (x[None], y[None], noise[None]))

    squares = {name: torch.zeros_like(value) for name, value in weights.items()}
    some = max(1, ROOM // sum(value.numel() for value in weights.values()))
    for part in zip(x.split(some), y.split(some), noise.split(some), strict=True):
        for name, gradient in vmap(grad(of_one), (None, 0, 0, 0))(weights, *part).items():
            squares[name] += gradient.square().sum(0)
    return squares


def diagonal_fisher(cvae, n_samples, batch_size=500, progress=iter, labels=10, images=None, stage=None):
    """F_i = E[(dELBO/dtheta_i)^2] over images that the model itself generates (the paper's Section 3.1 and its code).

    labels: how many there are, K, or an int64 tensor of those to take, uniformly; images: a function of labels (B,) that
    gives images (B, P), the model's mean images (cvae.generate, as in the paper's code) unless given; one more z, from q,
    estimates each image's ELBO. stage: a Stage, where a long run saves its progress and goes on from it. Returns a dict of
    tensors with the names and shapes of the model's parameters. Memory does not grow with n_samples.
    """
    device = next(cvae.parameters()).device
    choices = (labels if isinstance(labels, torch.Tensor) else torch.arange(labels)).to(device)
    width = max(int(choices.max()) + 1, getattr(cvae, "classes", 0))
    total = {name: torch.zeros_like(p) for name, p in cvae.named_parameters()}
    start = stage.resume({"state": total}, device) if stage else 0
    for done in progress(range(start, n_samples, batch_size)):
        c = choices[torch.randint(len(choices), (min(batch_size, n_samples - done),), device=device)]
        x = (images or cvae.generate)(c)
        noise = torch.randn(len(c), cvae.latent_dim, device=device)
        for name, squares in squared_gradients(cvae, x, one_hot(c, width), noise).items():
            total[name] += squares
        if stage and stage.due and done + batch_size < n_samples:
            stage.save_progress({"state": total}, done + batch_size, device)
    return {name: value / n_samples for name, value in total.items()}


def ewc_penalty(model, old, fim):
    """The penalty of elastic weight consolidation (Kirkpatrick et al. 2017): 1/2 sum F (theta - theta*)^2, a scalar in nats.

    An ordinary term of a loss, to be multiplied by lambda (the paper's Eq. 4 writes lambda sum F/2 ...). model: holds theta;
    old: the same model with theta*; fim: F by parameter name, as diagonal_fisher gives it. Second derivatives are not to be
    had of it.
    """
    doubled = 0
    for (name, p), start in zip(model.named_parameters(), old.parameters(), strict=True):
        change = p - start.detach()
        doubled += (fim[name] * change.detach() * change).sum()
    # Its slope, with F (theta - theta*) as a constant, is that of the half: so autograd has half as much to do
    return doubled - doubled.detach() / 2
