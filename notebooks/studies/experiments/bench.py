"""What every run of a study shares: the models and data it starts from, the method it tries, and how it is scored."""

import contextlib
import os
import time
from functools import cache, cached_property, partial

import torch

from amnesia.data import CLASSES, forget_set, load_digits
from amnesia.evaluation import ask, entropy, grey_reference, load_judge, model_metrics
from amnesia.fisher import diagonal_fisher
from amnesia.models import CVAE, Classifier
from amnesia.training import Diverged, pick_device
from amnesia.workspace import REPOSITORY, Workspace, check_dataset

from .attacks import SEARCHES, drawn, invert, recognised, relearn, search, successes
from .bounds import fine_tune, importance_weighted_bound, refit_encoder
from .methods import METHODS, Task
from .methods.selective_amnesia import selective_amnesia
from .sweep import Log, pack

RELEASED = REPOSITORY / "checkpoints" / "released"

# What studies 5 and 7 try to bring back, by row: a METHOD's options; a row that begins with a dot is Selective Amnesia
VARIANTS = {"· springs alike, λ = 0.1": {"lam": 0.1, "importance": "identity"}, "· prior for q": {"posterior": "prior"},
            "· reach 0.3": {"reach": 0.3}, "· prior for q, reach 0.3": {"posterior": "prior", "reach": 0.3}}
ATTACKED = {"original": {}, "selective amnesia": {}, "· λ = 0": {"lam": 0.0}, "· λ = 0.1": {"lam": 0.1},
            "· λ = 4": {"lam": 4.0}, "label edit": {}, "dampening": {}, "random label": {}, "retrain": {}, "oracle": {},
            **VARIANTS}


class Bench:
    """The files that the runs of a study start from, in a workspace or released: cvae.pt, fim-cvae.pt, the judge, digits."""

    def __init__(self, workspace="auto", dataset="MNIST", device="auto", model="cvae", use_drive=True):
        self.store, self.device, self.dataset = Workspace(workspace, use_drive, dataset), pick_device(device), dataset
        cvae = self.store.load(f"{model}.pt")
        check_dataset(cvae, dataset)
        judge = load_judge(self.store, self.device)
        fim = self.store.load(f"fim-{model}.pt", made_from=[cvae])
        self.cvae, self.judge = cvae.build(CVAE, self.device), judge.build(Classifier, self.device)
        self.fim = {name: value.to(self.device) for name, value in fim.state.items()}
        self.train, self.test = load_digits(dataset, self.store.data, self.device)
        self.lineage = {source.name: source.digest for source in (cvae, fim, judge, self.train, self.test)}
        # Pickled as its arguments, so that a worker reads the files itself
        self.rebuild = partial(bench, str(self.store.folder), dataset, device, model)

    def __reduce__(self):
        return self.rebuild, ()

    def grey(self, forgotten):
        """What the judge says of flat grey: (P of these labels, H)."""
        return grey_reference(self.judge, forgotten)

    def log(self, name="studies", *others):
        """The log <name>.jsonl in this workspace, of runs that start from the bench's files and from `others` (Saved)."""
        return Log(self.store.checkpoints / f"{name}.jsonl", self.lineage | {file.name: file.digest for file in others})

    def results(self, own, name="studies", *others):
        """The records of log(name, *others): this workspace's `own`, else the released ones."""
        return list((self.log(name, *others) if own else Log(RELEASED / f"{name}.jsonl")).records().values())

    def forgets(self, method, forget, seed=0, scale=1.0, **options):
        """The CVAE that has forgotten `forget` by a METHOD with these options. Raises Diverged."""
        task = Task(self.cvae, self.fim, self.train, *self.tensors(*forget_set(forget)), seed, scale)
        return METHODS[method][0](task, **options)

    def run(self, method, forget, seed=0, scale=1.0, bounds=False, **options):
        """One run: the original forgets `forget` by a METHOD with these options; returns its figures, plain values.

        The seed is that of the method and of the samples that are scored. bounds: also the two tighter bounds, which take
        half a minute. A run that diverges returns {"diverged": why}.
        """
        forgotten, kept = forget_set(forget)
        begin = time.perf_counter()
        try:
            cvae = self.forgets(method, forget, seed, scale, **options)
        except Diverged as error:
            return {"diverged": str(error)}
        seconds = time.perf_counter() - begin
        figures = self.score(cvae, forgotten, kept, seed)
        return {"seconds": seconds, **figures, **(self.tight_bounds(cvae, forgotten, kept, scale) if bounds else {})}

    def bring_back(self, method, forget, seed=0, scale=1.0, restarts=200, **options):
        """One run as in `run`, and then everything that may bring the first of the forgotten labels back; plain values:

        the figures of `run`; "attacks": {attack or "inversion from k images": {"hits", "n", "drawn"}}, successes by the
        second judge and eight pictures; "relearning": {k: steps}; "resurgence": figures after training on kept digits.
        """
        forgotten, kept = forget_set(forget)
        label, count = forgotten[0], max(20, round(1000 * scale))
        cvae = self.forgets(method, forget, seed, scale, **options)
        real = self.train.only([label])
        real = real.images[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:100]].float() / 255

        generator, attacks = torch.Generator().manual_seed(seed), {}
        for attack in SEARCHES:
            z, y = search(cvae, self.judge, label, attack, restarts, steps=max(1, round(150 * scale)), seed=seed)
            attacks[attack] = self.count(drawn(cvae, z, y), label)
        for k in (10, 100):
            y = invert(cvae, real[:k], steps=max(1, round(400 * scale)), seed=seed)
            z = torch.randn(count, cvae.latent_dim, generator=generator).to(self.device)
            attacks[f"inversion from {k} images"] = self.count(drawn(cvae, z, y.expand(count, -1)), label)

        z = torch.randn(1000, cvae.latent_dim, generator=torch.Generator().manual_seed(0)).to(self.device)
        aim = 0.9 * recognised(self.cvae, self.judge, label, z)
        relearning = {str(k): relearn(cvae, self.judge, real[:k], label, aim, limit=max(2, round(1000 * scale)), seed=seed)
                      for k in (10, 100)}
        tuned = fine_tune(cvae, self.train.only(kept), steps=max(1, round(1000 * scale)), seed=seed)
        return {**self.score(cvae, forgotten, kept, seed), "attacks": attacks, "relearning": relearning,
                "resurgence": self.score(tuned, forgotten, kept, seed)}

    def count(self, images, label):
        """Successes among these images, bytes (n, 784), by the second judge, and the first eight pictures."""
        hits = successes(self.second_judge, images, label)
        return {"hits": hits.sum().item(), "n": len(hits), "drawn": pack(images[:8])}

    @cached_property
    def second_judge(self):
        """A judge of another seed, who scores what was found with the first one's guidance."""
        return self.second_judge_file.build(Classifier, self.device)

    @cached_property
    def second_judge_file(self):
        """Where it is saved."""
        return load_judge(self.store, self.device, seed=1)

    def sequence(self, forget, seed=0, scale=1.0):
        """Forgets the digits of `forget` one after another, each round from the last one's model and its own Fisher
        information, with replay of what has not been forgotten so far. Returns {"rounds": [figures after each]}, and with
        them "drawn", four samples of each label forgotten so far: bytes (labels, 4, 28, 28), always from the same z."""
        cvae, fim, rounds = self.cvae, self.fim, []
        z = torch.randn(4, cvae.latent_dim, generator=torch.Generator().manual_seed(seed)).to(self.device)
        for count, digit in enumerate(forget, 1):
            so_far, kept = forget_set(forget[:count])
            cvae = selective_amnesia(Task(cvae, fim, self.train, *self.tensors([digit], kept), seed, scale))
            fim = diagonal_fisher(cvae, 50_000)
            labels, = self.tensors(forget[:count])
            drawn = cvae.generate(labels.repeat_interleave(4), z.repeat(count, 1)).view(count, 4, 28, 28)
            rounds.append({**self.score(cvae, so_far, kept, seed), "drawn": (drawn * 255).round().byte().tolist()})
        return {"rounds": rounds}

    def tensors(self, *lists):
        """Lists of labels as tensors on the device."""
        return [torch.tensor(labels, device=self.device) for labels in lists]

    def score(self, cvae, forgotten, kept, seed=0, n=1000):
        """The figures of evaluation-<digits>.json; precision and recall, means over kept labels; P and H of each label."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(CLASSES * n, cvae.latent_dim, generator=generator).to(self.device)
        labels = torch.arange(CLASSES, device=self.device).repeat_interleave(n)
        samples = (cvae.generate(labels, z) * 255).round().byte().view(CLASSES, n, 28, 28)
        probabilities, features = (values.view(CLASSES, n, -1) for values in ask(self.judge, samples))
        pairs = [precision_recall(features[label], self.real_features()[label]) for label in kept]
        precision, recall = (sum(values) / len(kept) for values in zip(*pairs, strict=True))
        return {**model_metrics(self.judge, samples, cvae, self.test, forgotten, kept),
                "precision": precision, "recall": recall,
                "P": [probabilities[label, :, label].mean().item() for label in range(CLASSES)],
                "H": entropy(probabilities).mean(1).tolist()}

    @cache  # noqa: B019  (a bench lives as long as its process)
    def real_features(self):
        """The judge's features of the real test images of each label."""
        return [ask(self.judge, self.test.only([label]).images)[1] for label in range(CLASSES)]

    def tight_bounds(self, cvae, forgotten, kept, scale=1.0):
        """Means over real test images, nats: the 64-sample bound of forgotten labels and of 2,000 kept images, and the
        ELBO and 64-sample bound of forgotten labels after refitting the encoder to the frozen decoder on real images."""
        gone, rest = self.test.only(forgotten), self.test.only(kept)
        rest.images, rest.labels = rest.images[:2000], rest.labels[:2000]
        refitted = refit_encoder(cvae, self.train.only(forgotten), steps=max(1, round(600 * scale)))
        return {"forgotten_iw": importance_weighted_bound(cvae, gone).mean().item(),
                "kept_iw": importance_weighted_bound(cvae, rest).mean().item(),
                "forgotten_refitted_iw": importance_weighted_bound(refitted, gone).mean().item()}


def precision_recall(samples, real, k=3):
    """(precision, recall) of features (N, D) against real ones (M, D): the share of each set that lies within the other's
    k-nearest-neighbour balls (Kynkaanniemi et al. 2019). Low recall is mode collapse, low precision is unreal samples."""
    def share_inside(points, others):
        radii = torch.cdist(others, others).kthvalue(k + 1, 1).values   # + 1: each point is its own nearest neighbour
        return (torch.cdist(points, others) <= radii).any(1).float().mean().item()

    return share_inside(samples, real), share_inside(real, samples)


@cache
def bench(*arguments):
    """The Bench of a worker process: read once, and without a word, since its output would end up in the notebook's."""
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        return Bench(*arguments)
