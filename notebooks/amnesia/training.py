"""fit(): the one loop that every trained stage uses. It knows nothing of VAEs or digits, only of named loss terms. And jitter,
which makes more pictures of few."""

import time

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from .device import bfloat16_products, captured, progress, quick_products


class Diverged(RuntimeError):
    """The loss became NaN or infinite, or ran away: 10,000 nats above a hundred times what it was at the first step."""


def optimizer_for(model, steps, learning_rate, schedule, weight_decay=0.0):
    """(optimizer, scheduler): AdamW, fused into one kernel a step; without weight decay it is Adam.

    schedule "one-cycle" (Smith & Topin 2018): the rate climbs to `learning_rate` over the first tenth and falls
    linearly to 0, with a second-moment memory of 100 steps rather than 1,000, which suits a rate that moves.
    "constant": plain Adam, as in the paper's code.
    """
    betas = (0.9, 0.99) if schedule == "one-cycle" else (0.9, 0.999)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas, weight_decay=weight_decay, fused=True)
    if schedule == "constant":
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)
    climb = max(0.1, 2 / (steps + 1))  # of very few steps, at least one whole one
    return optimizer, OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=climb,
                                 anneal_strategy="linear", cycle_momentum=False)


@quick_products()
def fit(model, loss, *, steps, learning_rate, schedule="one-cycle", weight_decay=0.0, data=None, snapshot=None, stage=None,
        title="fit", capture=False):
    """Minimises the sum of the terms that loss() returns, and leaves `model` in eval mode.

    loss: draws its own batch and returns a dict of named scalar terms, nats per image. Its matrix products may be rounded
        (see device.py).
    data: the Pictures that loss() takes its batches from, if any, so that a resumed run takes the very next one.
    snapshot: returns a dict of tensors and draws nothing random; called at thirty steps, denser at the start.
    stage: a Stage; the run saves its progress there now and then, and goes on from what is saved there.
    capture: on a CUDA card, the step is replayed as one graph (device.captured): for a loss() that does the same every
        time, since Python runs it four times only.
    Returns {"terms": {name: (steps,)}, "snapshot_steps": (n,), and what snapshot returned, stacked}, on the CPU.
    Raises Diverged, naming the step and the term; the last good state stays saved.
    """
    device = next(model.parameters()).device
    at = sorted({round(steps * (i / 29) ** 2) for i in range(30)}) if snapshot else []
    optimizer, scheduler = optimizer_for(model, steps, learning_rate, schedule, weight_decay)
    record = {"snapshots": []}
    parts = {"state": model, "optimizer": optimizer, "scheduler": scheduler, "record": record}
    if data:
        data.restart()
        parts["data"] = data
    start = stage.resume(parts, device) if stage else 0
    capture = capture and device.type == "cuda"
    for group in optimizer.param_groups:  # a graph reads the rate from the card; the run may have begun on another device
        rate = float(group["lr"])
        group.update(capturable=capture, lr=torch.tensor(rate, device=device) if capture else rate)

    def step():
        with bfloat16_products(device):
            terms = loss()
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        return list(terms), torch.stack(list(terms.values())).detach()

    if capture:
        step = captured(step, data).__next__
    model.train()
    looked = time.perf_counter()
    with progress(total=steps, initial=start, desc=title, unit="step") as bar:
        for done in range(start, steps + 1):
            if done in at:
                model.eval()                                # a reader's model may have dropout, or a normalisation of batches
                record["snapshots"].append({key: value.cpu() for key, value in snapshot().items()})
                model.train()
            if done == steps:
                break
            names, values = step()
            scheduler.step()
            if not done:
                record["log"] = torch.zeros(steps, len(names), device=device)
            log = record["log"]
            log[done] = values
            now = time.perf_counter()
            if now - looked < 1 and done + 1 < steps:
                continue  # reading a loss waits for the device, so only look once a second
            check_converging(log[:done + 1], bar.n, names)
            means = log[bar.n:done + 1].mean(0).tolist()
            bar.set_postfix({name: f"{mean:.1f}" for name, mean in zip(names, means, strict=True)}, refresh=False)
            bar.update(done + 1 - bar.n)
            looked = now
            if stage and stage.due and done + 1 < steps:
                stage.save_progress(parts, done + 1, device)
    model.eval()
    shots = record["snapshots"]
    # keys of the last shot, as those of a resumed run are other objects, and pickle would tell
    stacked = {key: torch.stack([shot[key] for shot in shots]) for key in shots[-1]} if shots else {}
    terms = {name: column.clone() for name, column in zip(names, log.cpu().T, strict=True)}
    return {"terms": terms, "snapshot_steps": torch.tensor(at), **stacked}


def check_converging(log, since, names):
    """Raises Diverged at the first step from `since` on where a term of the log (steps, terms) has run away."""
    bad = ~(log[since:].abs() < 100 * log[0].sum().abs() + 1e4)  # also true for NaN
    if bad.any():
        step, term = bad.nonzero()[0].tolist()
        raise Diverged(f"The loss diverged at step {since + step + 1:,}: {names[term]} = {log[since + step, term]:.4g}. "
                       "The last good state is kept. Lower learning_rate (or lam) and run again.")


def jitter(x, shape=(1, 28, 28), pixels=2.0, generator=None):
    """Images (B, P) turned by up to 12 degrees, scaled by up to 10 % and shifted by up to so many pixels of 28, at random."""
    where = generator.device if generator else x.device
    turn, scale, right, down = torch.rand(4, len(x), 1, generator=generator, device=where).to(x.device) * 2 - 1
    turn, scale, right, down = 0.21 * turn, 1 + 0.1 * scale, right * pixels / 14, down * pixels / 14
    cos, sin = scale * turn.cos(), scale * turn.sin()
    theta = torch.stack([torch.cat([cos, -sin, right], 1), torch.cat([sin, cos, down], 1)], 1)  # (B, 2, 3)
    size = len(x), *shape
    grid = F.affine_grid(theta, size, align_corners=False)
    return F.grid_sample(x.view(size), grid, align_corners=False, padding_mode="border").flatten(1)  # not every ground is black


def grow(pictures, seed, size=60_000):
    """A small set grown to about the size of MNIST by jittered copies of itself; a large one is returned as it is.

    From 4,000 images a CVAE soon knows them by heart: fourteen copies of each, by up to half a pixel, stand for the hands
    that are missing. Large pictures get fewer copies: all together take 190 MB at most.
    """
    size = min(size, 4 * size * 784 // pictures.images.shape[1])
    copies = [pictures.images]
    generator = torch.Generator().manual_seed(seed)         # on the CPU: the same copies on every device
    for _ in range(size // len(pictures) - 1):
        copies.append((jitter(pictures.images.float() / 255, pictures.shape, 0.5, generator) * 255).round().byte())
    return pictures.of(torch.cat(copies), pictures.labels.repeat(len(copies))) if len(copies) > 1 else pictures
