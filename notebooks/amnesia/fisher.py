"""The exact diagonal Fisher information of every weight, from one backward pass a batch."""

from functools import partial

import torch
from torch import nn

from .data import CLASSES, one_hot
from .models import negative_elbo_terms


def squared_gradients(cvae, x, y, noise):
    """The sum over samples of each squared per-sample gradient of the ELBO: a dict like the model's parameters.

    For a linear layer, sample i's weight gradient is the outer product of delta_i (the ELBO's gradient at the layer's
    output) and a_i (its input), so the sum of squares over samples is (delta^2)^T (a^2): a matrix product, with no
    gradient per sample ever stored. Only linear layers have parameters here; another kind raises TypeError.

    x: (B, 784); y: (B, 10); noise: (B, latent_dim).
    """
    layers = {name: layer for name, layer in cvae.named_modules() if list(layer.parameters(recurse=False))}
    if not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        raise TypeError(f"The Fisher information here is for linear layers only, found {layers}.")
    inputs, outputs = {}, {}

    def remember(name, _, args, output):
        inputs[name], outputs[name] = args[0].detach(), output

    hooks = [layer.register_forward_hook(partial(remember, name)) for name, layer in layers.items()]
    reconstruction, kl = negative_elbo_terms(cvae, x, y, noise)
    for hook in hooks:
        hook.remove()
    # Each sample's ELBO depends on its own row alone, so the gradient of the sum holds one sample's gradient in a row.
    deltas = torch.autograd.grad((reconstruction + kl).sum(), list(outputs.values()))
    squares = {}
    for name, delta in zip(outputs, deltas, strict=True):
        squares[f"{name}.weight"] = delta.square().T @ inputs[name].square()
        squares[f"{name}.bias"] = delta.square().sum(0)
    return squares


def diagonal_fisher(cvae, n_samples, batch_size=500, progress=iter, labels=None, stage=None):
    """F_i = E[(dELBO/dtheta_i)^2] over images that the model itself generates (the paper's Section 3.1 and its code).

    z is drawn from the prior and the label uniformly from all ten, or from `labels`, an int64 tensor; one more z, from q,
    estimates each image's ELBO. stage: a Stage, where a long run saves its progress and goes on from it. Returns a dict of
    tensors with the names and shapes of the model's parameters. Memory does not grow with n_samples.
    """
    device = next(cvae.parameters()).device
    choices = torch.arange(CLASSES, device=device) if labels is None else labels
    total = {name: torch.zeros_like(p) for name, p in cvae.named_parameters()}

    start = stage.resume({"state": total}, device) if stage else 0
    if start:
        print(f"Going on from sample {start:,} of {n_samples:,}, saved in {stage.unfinished}")
    for done in progress(range(start, n_samples, batch_size)):
        c = choices[torch.randint(len(choices), (min(batch_size, n_samples - done),), device=device)]
        x = cvae.generate(c)
        noise = torch.randn(len(c), cvae.latent_dim, device=device)
        for name, squares in squared_gradients(cvae, x, one_hot(c), noise).items():
            total[name] += squares
        if stage and stage.due and done + batch_size < n_samples:
            stage.save_progress({"state": total}, done + batch_size, device)
    return {name: value / n_samples for name, value in total.items()}
