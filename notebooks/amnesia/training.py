"""fit(): the one loop that every trained stage uses. It knows nothing of VAEs or digits, only of named loss terms."""

import sys
import time
from contextlib import contextmanager

import torch
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm


class Diverged(RuntimeError):
    """The loss became NaN or infinite, or ran away: 10,000 nats above a hundred times what it was at the first step."""


def pick_device(device="auto"):
    """The torch.device for the parameter `device`, a name or a torch.device: "auto" is a GPU if there is one that works.

    From here on torch makes float32 on the CPU and keeps gradients, its own defaults, whatever a startup file chose: the
    same settings then give the same files. Raises ValueError if a device that was asked for is absent or cannot be used.
    """
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if device != "auto":
        try:
            return tried(device)
        except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError, by backend
            raise ValueError(f"device={device!r}: not available here ({error}). Use \"auto\" or \"cpu\".") from error
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return tried(gpu)
    except Exception as error:  # a card that this torch is not built for, or a driver that does not fit
        reason = str(error).partition("\n")[0]
        print(f"The GPU here ({gpu}) cannot be used by torch {torch.__version__} ({reason}): going on with the CPU.")
        return torch.device("cpu")


def tried(device):
    """A torch.device, after it has multiplied two matrices; whatever torch raises if it can't."""
    ones = torch.ones(16, 16, device=device)
    (ones @ ones).sum().item()  # .item() waits for the result, and so for the error of a kernel that could not run
    return ones.device


def progress(iterable=None, **options):
    """A tqdm bar in plain text, in a terminal and in a notebook alike: widgets would break the saved notebook."""
    return tqdm(iterable, file=sys.stdout, ncols=110, mininterval=0.5, **options)


@contextmanager
def quick_products():
    """Within it, processors that have units for it round the inputs of float32 matrix products: to bfloat16 on a CPU with
    AMX (on an AMD with AVX512-BF16 alone, torch 2.14 did not), to TF32 on an NVIDIA GPU. Others compute as before. Sums
    stay float32, and so do the weights.

    The user's own setting is back afterwards, whether made by torch's older call or, from 2.9 on, by fp32_precision.
    """
    backends = [matmul for backend in (torch.backends.cuda, torch.backends.mkldnn)
                if hasattr(matmul := getattr(backend, "matmul", None), "fp32_precision")]
    newer = [matmul.fp32_precision for matmul in backends]
    for matmul in backends:
        matmul.fp32_precision = "ieee"  # else the older call below refuses to answer where the newer ones were used
    older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for matmul, value in zip(backends, newer, strict=True):
            matmul.fp32_precision = "none"  # which takes torch.backends.fp32_precision
            if matmul.fp32_precision != value:
                matmul.fp32_precision = value


def optimizer_for(model, steps, learning_rate, schedule, weight_decay=0.0):
    """(optimizer, scheduler): AdamW, fused into one kernel a step; without weight decay it is Adam.

    schedule "one-cycle" (Smith & Topin 2018): the rate climbs to `learning_rate` over the first tenth and falls
    linearly to 0, with a second-moment memory of 100 steps rather than 1,000, which suits a rate that moves.
    "constant": plain Adam, as in the paper's code. Raises ValueError for another name.
    """
    if schedule not in ("one-cycle", "constant"):
        raise ValueError(f"schedule={schedule!r}: expected 'one-cycle' or 'constant'.")
    betas = (0.9, 0.99) if schedule == "one-cycle" else (0.9, 0.999)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas, weight_decay=weight_decay, fused=True)
    if schedule == "constant":
        return optimizer, ConstantLR(optimizer, factor=1)
    climb = max(0.1, 2 / (steps + 1))  # of very few steps, at least one whole one
    return optimizer, OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=climb,
                                 anneal_strategy="linear", cycle_momentum=False)


def rng_state(device):
    """The states of the random number generators that a run on `device` draws from, for set_rng_state."""
    state = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state(*of_one(device))
    return state


def set_rng_state(state, device):
    """Puts the generators back to where rng_state(device) was taken; those of another kind of device stay as they are."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[device.type], *of_one(device))


def of_one(device):
    """The argument that says which of several cards is meant; of MPS there is but one."""
    return [device] if device.type == "cuda" else []


@quick_products()
def fit(model, loss, *, steps, learning_rate, schedule="one-cycle", weight_decay=0.0, data=None, snapshot=None,
        moments=30, stage=None, title="fit"):
    """Minimises the sum of the terms that loss() returns, and leaves `model` in eval mode.

    loss: draws its own batch and returns a dict of named scalar terms, nats per image.
    data: the Digits that loss() takes its batches from, if any, so that a resumed run takes the very next one.
    snapshot: returns a dict of tensors and draws nothing random; called at `moments` steps, denser at the start.
    stage: a Stage; the run saves its progress there now and then, and goes on from what is saved there.
    Returns {"terms": {name: (steps,)}, "moments": (moments,), and what snapshot returned, stacked}, on the CPU.
    Raises Diverged, naming the step and the term; the last good state stays saved.
    """
    device = next(model.parameters()).device
    at = sorted({round(steps * (i / (moments - 1)) ** 2) for i in range(moments)}) if snapshot else []
    names, log, snapshots = None, None, []
    optimizer, scheduler = optimizer_for(model, steps, learning_rate, schedule, weight_decay)
    if data:
        data.restart()

    def restore(saved):
        nonlocal names, log, snapshots
        names, snapshots = saved.names, saved.snapshots
        log = torch.zeros(steps, len(names), device=device)
        log[:saved.step] = saved.log.to(device)
        for part, state in ((model, saved.state), (optimizer, saved.optimizer), (scheduler, saved.scheduler)):
            part.load_state_dict(state)
        if data:
            data.load_state_dict(saved.data)
        set_rng_state(saved.rng, device)
        print(f"Going on from step {saved.step:,} of {steps:,}, saved in {stage.unfinished}")
        return saved.step

    start = stage.resume(restore) or 0 if stage else 0

    def save_progress(step):
        stage.save_progress(state=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict(),
                            data=data.state_dict() if data else None, step=step, names=names, log=log[:step].cpu(),
                            snapshots=snapshots, rng=rng_state(device))

    def take_snapshot():
        snapshots.append({key: value.cpu() for key, value in snapshot().items()})

    model.train()
    seen, looked = start, time.perf_counter()
    with progress(total=steps, initial=start, desc=title, unit="step") as bar:
        for step in range(start, steps):
            if step in at:
                take_snapshot()
            terms = loss()
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
            scheduler.step()
            if log is None:
                names, log = list(terms), torch.zeros(steps, len(terms), device=device)
            log[step] = torch.stack(list(terms.values())).detach()

            now = time.perf_counter()
            if now - looked < 1 and step + 1 < steps:
                continue  # reading a loss waits for the device, so only look once a second
            check(log[:step + 1], seen, names)
            means = log[seen:step + 1].mean(0).tolist()
            bar.set_postfix({name: f"{mean:.1f}" for name, mean in zip(names, means, strict=True)}, refresh=False)
            bar.update(step + 1 - seen)
            seen, looked = step + 1, now
            if stage and stage.due and step + 1 < steps:
                save_progress(step + 1)
    if snapshot:
        take_snapshot()
    model.eval()
    stacked = {key: torch.stack([moment[key] for moment in snapshots]) for key in snapshots[0]} if snapshots else {}
    return {"terms": {name: log[:, i].cpu().clone() for i, name in enumerate(names)}, "moments": torch.tensor(at), **stacked}


def check(log, since, names):
    """Raises Diverged at the first step from `since` on where a term of the log (steps, terms) has run away."""
    limit = 100 * log[0].sum().abs() + 1e4
    bad = ~(log[since:].abs() < limit)  # also true for NaN
    if bad.any():
        step, term = bad.nonzero()[0].tolist()
        raise Diverged(f"The loss diverged at step {since + step + 1:,}: {names[term]} = {log[since + step, term]:.4g}. "
                       "The last good state is kept. Lower learning_rate (or lam) and run again.")
