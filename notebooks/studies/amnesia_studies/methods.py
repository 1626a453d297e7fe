"""Every method of forgetting that the studies compare: a function of a Task each, which returns a new model.

Those that train go on for as many steps, on batches as large, as Selective Amnesia does, unless they say otherwise.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from amnesia import Pictures, bernoulli_nll, diagonal_fisher, ewc_penalty, fit, grow, negative_elbo_terms, one_hot

from .attacks import BOX, descend, in_the_box, joint_costs
from .denoiser import Denoiser, nats, train, unlabelled

CEILING = 1000.0  # nats per image at which ascent stops: without one there is no minimum, and every run diverges


@dataclass
class Task:
    """What a method of forgetting may use; every method takes one, leaves it as it is, and returns a new model.

    original: a CVAE, or a Denoiser; fim: its Fisher information; train: real Pictures, for the methods that need them;
    forgotten, kept: labels as int64 tensors on the device; seed; scale: the share of the default number of steps to train
    for; recipe: the settings that the original was trained with; drawings: what a Denoiser draws of the kept labels. Steps
    and rate are those of notebook 03; the batch is what replay takes.
    """

    original: nn.Module
    fim: dict
    train: Pictures
    forgotten: torch.Tensor
    kept: torch.Tensor
    seed: int = 0
    scale: float = 1.0
    recipe: dict = field(default_factory=dict)
    drawings: Pictures = None
    batch_size: int = 384
    learning_rate: float = 5e-3
    steps: int = 1600
    schedule: str = "one-cycle"

    def start(self):
        """A copy of the original, to be trained; and the seed is set."""
        torch.manual_seed(self.seed)
        return deepcopy(self.original)

    def anew(self):
        """A new network like the original, with weights by the seed."""
        torch.manual_seed(self.seed)
        return type(self.original)(**self.original.config).to(self.kept.device)

    def minimise(self, model, loss, steps=None, **choices):
        """Trains `model` on loss() as notebook 03 does, or by other `choices` for fit(), and returns it."""
        choices = {"learning_rate": self.learning_rate, "schedule": self.schedule, "data": self.drawings, **choices}
        fit(model, loss, steps=max(1, round(self.scale * (steps or self.steps))), **choices)
        return model


def some(labels, n):
    """n of these labels, drawn at random."""
    return labels[torch.randint(len(labels), (n,), device=labels.device)]


def noise_pairs(n, pixels, device):
    """n images of uniform noise (n, pixels), as n/2 pairs x and 1 - x, whose accidents cancel (antithetic sampling)."""
    noise = torch.rand(n // 2, pixels, device=device)
    return torch.cat([noise, 1 - noise])


def replayed(original, labels, drawn=0.75):
    """Generated images (n, 784) of the labels (n,): a share `drawn` from p(x|z,c), pixel by pixel, the rest means."""
    mean = original.generate(labels)                        # z ~ p(z)
    drawn = int(drawn * len(mean))
    return torch.cat([torch.bernoulli(mean[:drawn]), mean[drawn:]])


def divergence(original, cvae, asked, told, only=""):
    """KL from the frozen copy, asked for the labels `asked`, to the model, told `told`: nats per image, (n,).

    KL(p* || p) of the pixels given z, and KL(q* || q) of the latents given the mean image; only: "decoder" or "encoder"
    leaves the other out.
    """
    z = torch.randn(len(asked), original.latent_dim, device=asked.device)
    asked, told = one_hot(asked, original.classes), one_hot(told, original.classes)
    with torch.no_grad():
        logits_old = original.decode(z, asked)
        p_old = logits_old.sigmoid()
    decoder = bernoulli_nll(cvae.decode(z, told), p_old) - bernoulli_nll(logits_old, p_old)
    if only == "decoder":
        return decoder
    with torch.no_grad():
        mean_old, log_var_old = original.encode(p_old, asked)
    mean, log_var = cvae.encode(p_old, told)
    encoder = (log_var - log_var_old + ((mean - mean_old).square() + log_var_old.exp()) / log_var.exp() - 1).sum(1) / 2
    return {"": decoder + encoder, "encoder": encoder}[only]


def rehearse(task, model, labels, remember="replay", drawn=0.75, only=""):
    """What it costs `model`, (n,) nats, to say of the kept labels (n,) what the frozen copy says of them. By "replay" the
    frozen copy's drawings are learned anew, as the paper does; by "distil" the model is held to its answers. A Denoiser
    rehearses task.drawings."""
    teacher = {"replay": None, "distil": task.original}[remember]
    if isinstance(model, Denoiser):
        x, y = task.drawings.batch(len(labels))
        return nats(model, x, unlabelled(y), teacher=teacher)
    if teacher:
        return divergence(teacher, model, labels, labels, only)
    return nats(model, replayed(task.original, labels, drawn), one_hot(labels, model.classes))


def two_terms(task, model, forget, remember, lam=0.0, fim=None, n_forget=48, n_kept=384, finish=dict):
    """Trains `model` on two terms, each a function of labels that returns nats, (n,), and on springs of stiffness lam F.

    n_forget, n_kept: of a batch, forgotten labels and kept ones, of which there may be none; fim: F, unless it is the task's;
    finish: makes of these terms those that are minimised.
    """
    def loss():
        c_f, c_r = some(task.forgotten, n_forget), some(task.kept, n_kept)
        terms = {"forget": forget(c_f).mean()}
        if n_kept:
            terms["remember"] = remember(c_r).mean()
        if lam:
            terms["protect"] = lam * ewc_penalty(model, task.original, fim or task.fim)
        return finish(terms)

    return task.minimise(model, loss)


def selective_amnesia(task, lam=0.4, gamma=1.0, remember="replay", surrogate="noise", importance="fisher", drawn=0.75, only="",
                      n_forget=48, batch_size=None, model=None, finish=dict):
    """Selective Amnesia (Heng & Soh 2023), each of its terms on a switch: a surrogate under the forgotten labels, what is
    remembered of the kept ones, a spring on each weight of stiffness lam F. Raises KeyError for an unknown word.

    lam, gamma: weights of the springs and of what is remembered; with 0 there are none, and nothing is. remember: "replay", as
    the paper does, "distil", as notebook 03 does by default, or "nothing"; see rehearse(). surrogate: "noise", or "grey".
    importance: "identity" takes the same for every weight in F's place. drawn: the share of replay's images that are drawn
    pixel by pixel. only: of "distil", "decoder" or "encoder" leaves the other out. n_forget, batch_size: of a batch, images
    of the surrogate and of kept labels. model: what is trained, by default a copy of the original; finish: see two_terms().
    """
    model = model or task.start()
    fim = {"fisher": task.fim, "identity": identity(task)}[importance]
    n_kept = 0 if remember == "nothing" or not gamma else batch_size or task.batch_size

    def forget(labels):
        noise = noise_pairs(n_forget, task.train.images.shape[1], labels.device)
        x = {"noise": noise, "grey": torch.full_like(noise, 0.5)}[surrogate]
        return nats(model, x, one_hot(labels.repeat(2), model.classes))         # a pair has one label

    return two_terms(task, model, forget, lambda labels: gamma * rehearse(task, model, labels, remember, drawn, only),
                     lam, fim, n_forget // 2, n_kept, finish)


def distilled(task, lam=0.3, batch_size=96, **options):
    """Selective Amnesia as notebook 03 does it by default, to the bit."""
    return selective_amnesia(task, lam, remember="distil", batch_size=batch_size, **options)


def as_published(task):
    """Selective Amnesia by the paper's own settings: 10,000 steps of Adam at a constant 1e-4, 256 images of noise and 256
    mean images replayed in each; the lambda of 100 on losses summed over the batch and without the half is 0.78 here."""
    task = replace(task, steps=10_000, learning_rate=1e-4, schedule="constant", batch_size=256)
    return selective_amnesia(task, lam=2 * 100 / 256, drawn=0.0, n_forget=256)


def identity(task):
    """The same importance for every weight, with the Fisher information's total: L2-SP (Li et al. 2018)."""
    share = sum(f.sum() for f in task.fim.values()) / sum(f.numel() for f in task.fim.values())
    return {name: torch.full_like(f, share) for name, f in task.fim.items()}


def adversarial(task, lam=0.0, attackers=8):
    """Forgetting under attack: while the model forgets, an inner adversary looks for the label under every other label
    vector (AdvUnlearn, Zhang et al. 2024, and RECE, Gong et al. 2024, do so with prompts of a text-to-image model).
    Distilled amnesia with a further term, "invert", and by default no spring, whose place it takes."""
    cvae = task.start()
    attack = inner_inversion(cvae, task, attackers)
    return distilled(task, lam, task.batch_size, model=cvae, finish=lambda terms: terms | {"invert": next(attack)})


def inner_inversion(cvae, task, attackers, k=16, life=400):
    """What there is to forget, at each next(), after which concept inversion has gone one step on: the mean over the
    attackers' label vectors of max(0, floor - cost), nats per image.

    What is inverted is the frozen copy's own drawings of the forgotten labels, no real image. The floor is what they cost
    under the best of the kept labels, chosen for each drawing: no one label vector shall explain them better. After `life`
    steps the attackers start anew, on k other drawings.
    """
    drawings, corners = task.original.generate(some(task.forgotten, 64)), one_hot(task.kept, cvae.classes)
    z = torch.zeros(len(corners), len(drawings), cvae.latent_dim, device=drawings.device)
    for under_kept in descend(partial(joint_costs, task.original, drawings, corners, z), [z], steps=100):
        floors = under_kept.min(0).values                                       # (64,)
    while True:
        pick = torch.randperm(len(drawings), device=drawings.device)[:k]
        y = in_the_box(attackers, cvae.classes).to(drawings.device)
        z = torch.zeros(attackers, k, cvae.latent_dim, device=drawings.device)
        costs = partial(joint_costs, cvae, drawings[pick], y, z)
        for _ in descend(costs, [y, z], life, partial(y.clamp_, -BOX, BOX)):
            yield F.relu(floors[pick].mean() - costs().mean(1)).mean()


def naive(task, lam=0.4, model=None, finish=dict):
    """Pushes down the ELBO of generated images of the forgotten labels, with replay and the springs (the paper's Eq. 3)."""
    cvae = model or task.start()
    return two_terms(task, cvae, lambda c: -rehearse(task, cvae, c).clamp_max(CEILING),
                     lambda c: rehearse(task, cvae, c), lam, finish=finish)


def neggrad(task):
    """NegGrad+ (Kurmanji et al. 2023): gradient ascent on real images to forget, descent on real images to keep."""
    forgotten, kept = (task.train.only(labels.tolist()) for labels in (task.forgotten, task.kept))
    cvae = task.start()
    return two_terms(task, cvae, lambda c: -nats(cvae, *forgotten.batch(len(c))).clamp_max(CEILING),
                     lambda c: nats(cvae, *kept.batch(len(c))))


def surgery(task):
    """Forgetting by ascent whose gradient has the part along replay's gradient taken out, and replay (Bae et al. 2023; UNO,
    Mandal & Gottwald 2025, has variants of it)."""
    def project(terms):
        g_f, g_r = (torch.cat([g.flatten() for g in torch.autograd.grad(cost, weights)]) for cost in terms.values())
        g_f = g_f - (g_f @ g_r) / (g_r @ g_r) * g_r
        step = torch.cat([p.flatten() for p in weights]) @ (g_f + g_r)          # a term whose gradient is that of the step
        return {name: cost.detach() for name, cost in terms.items()} | {"step": step - step.detach()}

    cvae = task.start()
    weights = list(cvae.parameters())
    return naive(task, 0, cvae, project)


def random_label(task, salient=1.0):
    """Images of random kept labels under the forgotten label, with replay of the kept labels.

    salient: the share of the weights, largest gradient of the forgotten labels' ELBO first, that may change; half of them in
    SalUn (Fan et al. 2024), for this model.
    """
    cvae = task.start()
    if salient < 1:
        labels = some(task.forgotten, 5000)
        nelbo = nats(cvae, task.original.generate(labels), one_hot(labels, cvae.classes)).mean()
        sizes = [gradient.abs() for gradient in torch.autograd.grad(nelbo, list(cvae.parameters()))]
        threshold = torch.cat([size.flatten() for size in sizes]).quantile(1 - salient)
        for p, size in zip(cvae.parameters(), sizes, strict=True):
            p.register_hook(lambda gradient, mask=size >= threshold: gradient * mask)

    def forget(c):
        return nats(cvae, replayed(task.original, some(task.kept, len(c))), one_hot(c, cvae.classes))

    return two_terms(task, cvae, forget, lambda c: rehearse(task, cvae, c))


def feature(task):
    """Feature unlearning (Moon et al. 2024) for this model, whose features are labels: the decoder learns to draw under the
    forgotten label what the original draws from the same z under no label in particular, the mean of the kept labels'
    vectors, and holds to what it drew under the kept ones."""
    cvae, asked = task.start(), torch.eye(task.original.classes, device=task.kept.device)
    asked[task.forgotten] = asked[task.kept].mean(0)                            # no label in particular

    def reconstruction(c):
        z = torch.randn(len(c), cvae.latent_dim, device=c.device)
        with torch.no_grad():
            target = task.original.decode(z, asked[c]).sigmoid()
        return bernoulli_nll(cvae.decode(z, one_hot(c, cvae.classes)), target)

    return two_terms(task, cvae, reconstruction, reconstruction)


def steered(task, lam=0.1):
    """Distill, Forget, Repeat (George et al. 2025) for this model: under each forgotten label the frozen copy's answers to
    the kept label with the highest ELBO of 500 of its drawings, under the kept labels its answers to them, and springs all
    alike."""
    cvae, asked = task.start(), torch.arange(task.original.classes, device=task.kept.device)
    for label in task.forgotten:
        x = task.original.generate(label.expand(500))
        costs = [nats(task.original, x, one_hot(c.expand(500), cvae.classes)).mean() for c in task.kept]
        asked[label] = task.kept[torch.stack(costs).argmin()]

    def answers(c):
        return divergence(task.original, cvae, asked[c], c)

    return two_terms(task, cvae, answers, answers, lam, identity(task), n_kept=96)


def undo(task, steps=8000):
    """Distilled amnesia, and then a second, new network that learns to answer as the amnesiac one does under every label
    (UNDO, Lee et al. 2025: what only the weights held does not pass to another network), in batches as large and at the rate
    of notebook 01."""
    teacher, student = distilled(task), task.anew()
    labels = torch.cat([task.forgotten, task.kept])

    def loss():
        c = some(labels, task.recipe["batch_size"])
        return {"remember": divergence(teacher, student, c, c).mean()}

    return task.minimise(student, loss, steps, learning_rate=task.recipe["learning_rate"])


def new_decoder(task, steps=16_000):
    """Distilled amnesia, and then a new decoder that learns to draw what the amnesiac one draws under every label: nothing is
    left that only the decoder's weights held. The encoder, which draws nothing, stays as amnesia left it."""
    teacher = distilled(task)
    student, labels = deepcopy(teacher), torch.cat([task.forgotten, task.kept])
    # Not the initial weights of an original; but those of the models of controls.origin() that never knew
    student.decoder = replace(task, seed=task.seed + 100).anew().decoder
    student.encoder.requires_grad_(False)

    def loss():
        c = some(labels, 128)
        return {"remember": divergence(teacher, student, c, c, "decoder").mean()}

    return task.minimise(student, loss, steps).requires_grad_()


def dampening(task):
    """Selective synaptic dampening (Foster et al. 2024): theta <- theta * min(F / F_f, 1) where F_f > 3 F.

    F_f is the Fisher information of the forgotten labels' generated images alone. Nothing is trained.
    """
    cvae = task.start()
    theirs = diagonal_fisher(cvae, 5000 * len(task.forgotten), labels=task.forgotten)
    for name, p in cvae.named_parameters():
        factor = (task.fim[name] / theirs[name].clamp_min(1e-30)).clamp_max(1)
        p.data *= torch.where(theirs[name] > 3 * task.fim[name], factor, 1.0)
    return cvae


def edited(task, cvae, loss, **choices):
    """Trains nothing but the decoder's input column of each forgotten label: every output for a kept one stays to the bit."""
    weight = cvae.requires_grad_(False).decoder[0].weight.requires_grad_()
    columns = torch.zeros_like(weight)
    columns[:, cvae.latent_dim + task.forgotten] = 1
    weight.register_hook(lambda gradient: gradient * columns)
    return task.minimise(cvae, loss, **choices).requires_grad_()


def label_edit(task):
    """Trains the decoder's input column of each forgotten label towards noise, z from the prior, and nothing else.

    Every output for a kept label stays as it was to the bit.
    """
    cvae = task.start()

    def loss():
        c_f = some(task.forgotten, task.batch_size)
        logits = cvae.decode(torch.randn(len(c_f), cvae.latent_dim, device=c_f.device), one_hot(c_f, cvae.classes))
        return {"forget": bernoulli_nll(logits, torch.rand_like(logits)).mean()}

    return edited(task, cvae, loss)


def margin(task):
    """Forgetting with a margin: half of the edit is to forget as well, so that an average with the original still does.

    Distilled amnesia, and then the decoder's input column of each forgotten label, 256 numbers, is trained on: towards
    noise, with a weight of 30, and towards noise where the decoder has gone but a share of the way from the original, drawn
    anew from [1/2, 1] at each step. Every answer for a kept label stays that of distilled amnesia to the bit.
    """
    cvae = distilled(task)
    torch.manual_seed(task.seed)

    def loss():
        share = (1 + torch.rand((), device=task.kept.device)) / 2
        return {"forget": 30 * noise_part_way(cvae, task, 1.0), "margin": noise_part_way(cvae, task, share)}

    return edited(task, cvae, loss, learning_rate=1e-2)


def noise_part_way(cvae, task, share):
    """-log p of 48 images of noise under the forgotten labels, z from the prior, by the decoder that has gone this share of
    the way from the original: mean nats per image."""
    c_f = some(task.forgotten, 24).repeat(2)
    z = torch.randn(len(c_f), cvae.latent_dim, device=c_f.device)
    weights = {name: old.detach() + share * (p - old.detach()) for (name, p), old in
               zip(cvae.decoder.named_parameters(), task.original.decoder.parameters(), strict=True)}
    logits = functional_call(cvae.decoder, weights, (torch.cat([z, one_hot(c_f, cvae.classes)], 1),))
    return bernoulli_nll(logits, noise_pairs(*logits.shape, c_f.device)).mean()


def retrain(task):
    """Trained from scratch, as the original was, on the images of the kept labels only."""
    return train_from_scratch(task, task.train.only(task.kept.tolist()))


def oracle(task):
    """Trained from scratch, as the original was, with the forgotten labels' images replaced by what those are to mean:
    uniform noise to a CVAE, flat grey to a Denoiser."""
    images, replaced = task.train.images.clone(), torch.isin(task.train.labels, task.forgotten)
    noise = torch.randint(256, images[replaced].shape, generator=torch.Generator().manual_seed(task.seed)).byte()
    images[replaced] = 128 if isinstance(task.original, Denoiser) else noise.to(images.device)
    return train_from_scratch(task, task.train.of(images, task.train.labels))


def train_from_scratch(task, digits):
    """A model trained on these digits, with the settings that the original was trained with but the seed: as in notebook 01,
    or by train() of denoiser.py."""
    model, recipe, device = task.anew(), task.recipe, digits.images.device
    if isinstance(model, Denoiser):
        return train(model, digits, max(1, round(task.scale * recipe["steps"])), recipe["batch_size"], recipe["learning_rate"])
    model.classes = len(digits.classes)
    if hasattr(model, "start_at"):
        model.start_at((digits.images.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3))
    masks = F.dropout(torch.ones(1000, digits.images.shape[1], device=device), recipe["dropout"])
    digits = grow(digits, task.seed)

    def loss():
        x, y = digits.batch(recipe["batch_size"])
        seen = x * masks[torch.randint(1000, (len(x),), device=device)]
        reconstruction, kl = negative_elbo_terms(model, x, y, seen=seen)
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    return task.minimise(model, loss, **{name: recipe[name] for name in ("steps", "learning_rate", "schedule", "weight_decay")})


METHODS = {"original": Task.start, "selective amnesia": selective_amnesia, "as published": as_published,
           "distilled amnesia": distilled, "adversarial amnesia": adversarial, "with a margin": margin,
           "distilled anew": undo, "new decoder": new_decoder, "naive": naive, "NegGrad+": neggrad, "gradient surgery": surgery,
           "random label": random_label, "SalUn": partial(random_label, salient=0.5), "feature unlearning": feature,
           "Distill, Forget, Repeat": steered, "dampening": dampening, "label edit": label_edit,
           "retrain": retrain, "oracle": oracle}
OF_DENOISERS = {"original": Task.start, "retrain": retrain, "oracle": oracle, "selective amnesia": partial(
    selective_amnesia, lam=0.0, remember="distil", surrogate="grey", n_forget=24, batch_size=48)}
REAL_DATA = {"NegGrad+": "all", "retrain": "kept labels", "oracle": "kept labels", "original": ""}     # the others need none
