"""What may be done to weights without data and without a step of training: mixed and rounded."""

from copy import deepcopy

import torch


@torch.no_grad()
def mixed(base, models, shares):
    """A new model with the weights base + sum_i shares_i (models_i - base).

    Shares that sum to 1 are a weighted average of the models, in which the base has no part; shares of 1 each are the sum
    of their edits of the base (task arithmetic, Ilharco et al. 2023). Raises ValueError for models of another shape.
    """
    model = deepcopy(base)
    for p, *others in zip(model.parameters(), *(one.parameters() for one in models), strict=True):
        p.copy_(p + sum(share * (other - p) for share, other in zip(shares, others, strict=True)))
    return model


@torch.no_grad()
def rounded(model, bits):
    """A copy whose weight matrices take 2^bits - 1 values, evenly spaced from minus to plus the matrix's largest entry;
    biases stay."""
    model, levels = deepcopy(model), 2 ** (bits - 1) - 1
    for p in model.parameters():
        if p.ndim == 2:
            spacing = p.abs().max() / levels
            p.copy_((p / spacing).round() * spacing)
    return model
