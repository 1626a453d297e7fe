"""The judge, and what it is asked: is the digit forgotten, is the rest intact?

Every metric comes with a 95 % interval over samples (or test images). Definitions: the paper's Section 4.1 for P and H;
Heusel et al. 2017 for the Frechet distance, here in the judge's own features.
"""

import math

import torch
from torch.nn.functional import cross_entropy

from .checkpoints import refused
from .data import load_pictures
from .models import Classifier
from .stages import Stage
from .training import fit, jitter

Z95 = 1.959964


def load_judge(store, device, data=(), seed=0):
    """The judge of the workspace's data set, as Saved: its own or the released one, else trained on real images now.

    data: {name: digest} of the pictures that the model was trained on, as far as known; seed: another seed is another judge,
    for those who must not ask the one that they were guided by. Raises WorkspaceError for a judge of other pictures.
    """
    name = f"classifier-{seed}.pt" if seed else "classifier.pt"
    if not store.find(name):
        print(f"There is no {name} yet: training this judge, once.")
        train_judge(store, load_pictures(store.source, store.data, device)[0], seed)
    saved = store.load(name)
    mnist = all(source.startswith("MNIST") for source in (*saved.lineage, *data))        # whose small set is a part of it
    if data and saved.lineage != data and not mnist:
        raise refused(saved.path, f"was trained on {', '.join(saved.lineage)}, and not on {', '.join(data)}: move it away.")
    return saved


def train_judge(store, train, seed=0, steps=None):
    """Trains the judge on real images alone, each turned, scaled and shifted a little, and saves it in the workspace.

    store: Workspace; train: Pictures; steps: 1,000 and one for every ten images, 7,000 at most, unless given. The run can be
    cut off and resumed.
    """
    settings = {"seed": seed, "steps": steps or min(7000, 1000 + len(train) // 10), "batch_size": 128,
                "learning_rate": 2e-3, "weight_decay": 0.05}
    stage = Stage(store, f"classifier-{seed}.pt" if seed else "classifier.pt", settings, [train])
    torch.manual_seed(seed)
    judge = Classifier(train.shape, len(train.classes)).to(train.images.device)

    def loss():
        x, y = train.batch(stage.batch_size)
        return {"cross-entropy": cross_entropy(judge(jitter(x, train.shape)), y)}

    history = fit(judge, loss, steps=stage.steps, learning_rate=stage.learning_rate, weight_decay=stage.weight_decay, data=train,
                  stage=stage, title="judge")
    stage.save(state=judge.state_dict(), config=judge.config, metrics=history)


@torch.no_grad()
def ask(judge, images, batch_size=500):
    """The judge's probabilities (N, K) and features (N, 128), on the CPU, for uint8 images of N x P pixels."""
    device, images = next(judge.parameters()).device, images.reshape(-1, math.prod(judge.config["shape"]))
    features = [judge.features(batch.to(device).float() / 255) for batch in images.split(batch_size)]
    return torch.cat([judge.head(batch).softmax(1) for batch in features]).cpu(), torch.cat(features).cpu()


def frechet(a, b, resamples=40):
    """Frechet distance between Gaussians fitted to features (N, D) and (M, D): (distance, [low, high]).

    The interval is the distance +- 1.96 standard deviations over bootstrap samples of `a`. In float64.
    """
    a, b = a.double(), b.double()
    mean_b, cov_b = b.mean(0), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_b)
    root_b = vectors * values.clamp_min(0).sqrt() @ vectors.T
    generator = torch.Generator().manual_seed(0)
    distances = []
    for index in (torch.arange(len(a)), *torch.randint(len(a), (resamples, len(a)), generator=generator)):
        drawn = a[index]
        mean_a, cov_a = drawn.mean(0), drawn.T.cov()
        # tr sqrt(A B) from the eigenvalues of the symmetric sqrt(B) A sqrt(B), which has the same ones
        cross = torch.linalg.eigvalsh(root_b @ cov_a @ root_b).clamp_min(0).sqrt().sum()
        distances.append(((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item())
    value, spread = distances[0], Z95 * torch.tensor(distances[1:]).std().item()
    return value, [value - spread, value + spread]


def mean_interval(values):
    """(mean, [low, high]) of N values: the mean +- 1.96 standard errors."""
    values = values.double()
    mean, error = values.mean().item(), Z95 * values.std().item() / math.sqrt(values.numel())
    return mean, [mean - error, mean + error]


def wilson_interval(hits, n):
    """(share, [low, high]): the Wilson score interval of a share of `hits` in `n`."""
    from scipy.stats import binomtest  # here, since importing it takes a second

    return hits / n, list(binomtest(hits, n).proportion_ci(method="wilson"))


def entropy(probabilities):
    """Entropy of each row of probabilities (..., K), in nats: at most ln K, 2.303 for ten."""
    return torch.special.entr(probabilities).sum(-1)


def with_intervals(**figures):
    """{name: (value, [low, high])} as {name: value, …, "interval95": {name: [low, high], …}}."""
    return {**{name: value for name, (value, _) in figures.items()},
            "interval95": {name: interval for name, (_, interval) in figures.items()}}


def forgetting_metrics(probabilities, asked, images):
    """What is left of forgotten labels: the judge's probabilities (N, K) of images asked for by the labels `asked` (N,).

    The paper's two figures, P and H, which belong to the judge; the share of images whose most likely label is the one asked
    for; and their contrast, the mean of each image's standard deviation, in grey levels. images: uint8, (N, ...).
    """
    asked = torch.as_tensor(asked)
    hits = (probabilities.argmax(1) == asked).sum().item()
    return {"forgotten_probability": mean_interval(probabilities.gather(1, asked[:, None])),
            "entropy": mean_interval(entropy(probabilities)),
            "forgotten_share": wilson_interval(hits, len(asked)),
            "forgotten_contrast": mean_interval(images.cpu().flatten(1).double().std(1, correction=0))}


def model_metrics(samples, seen, real, bounds, forgotten, kept, before=()):
    """One model's block of evaluation-<labels>.json.

    samples: uint8 (K, n, ...), row = label asked for; seen: ask(judge, samples); real: the judge's features (M, D) of real test
    images of the kept labels; bounds: the ELBOs of real test images, in nats, of the kept and of the forgotten labels;
    forgotten, kept: labels; before: those that an earlier round has forgotten, scored under names of their own.
    """
    classes, n = samples.shape[:2]
    probabilities, features = (values.view(classes, n, -1) for values in seen)
    confusion = torch.stack([row.bincount(minlength=classes) for row in probabilities.argmax(2)])  # (K, K) counts
    hits = confusion.diagonal()[kept]

    def gone(labels):
        asked = torch.tensor(labels).repeat_interleave(n)
        return forgetting_metrics(probabilities[labels].flatten(0, 1), asked, samples[labels].flatten(0, 1))

    earlier = {f"before_{key}": value for key, value in gone(list(before)).items()} if before else {}
    return {"n_per_class": n, "confusion": confusion.tolist(), **with_intervals(
        **gone(list(forgotten)), **earlier,
        kept_accuracy=wilson_interval(hits.sum().item(), n * len(kept)),
        kept_accuracy_worst=wilson_interval(hits.min().item(), n),
        kept_frechet=frechet(features[kept].flatten(0, 1), real),
        kept_elbo=mean_interval(bounds[0]),
        forgotten_elbo=mean_interval(bounds[1]))}


def reference_metrics(judge, train, test, real, forgotten, kept, surrogate=None):
    """The block `reference`: the judge on real test images, on flat 0.5 grey, on uniform noise; and the Frechet floor.

    train, test: Pictures; real: ask(judge, test.images). The floor is that of 1,000 real training images of each kept label
    from the real test images. surrogate: uint8 images (M, ...) of what the forgotten labels were to mean, if that is another
    label: a block more.
    """
    def asked_for(images):
        asked = torch.tensor(forgotten).repeat_interleave(len(images))
        verdict = ask(judge, images)[0].repeat(len(forgotten), 1)
        return with_intervals(**forgetting_metrics(verdict, asked, images.flatten(1).repeat(len(forgotten), 1)))

    noise = torch.randint(256, (1000, test.images.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    floor = torch.cat([train.only([label]).images[:1000] for label in kept])
    verdict, features = real
    labels = test.labels.cpu()
    of_kept, gone = test.mask(kept).cpu(), test.mask(forgotten).cpu()
    hits = (verdict.argmax(1) == labels)[of_kept].sum().item()
    blocks = {"real": with_intervals(**forgetting_metrics(verdict[gone], labels[gone], test.images.cpu()[gone]),
                                     kept_accuracy=wilson_interval(hits, of_kept.sum().item())),
              "grey": grey_reference(judge, forgotten), "noise": asked_for(noise)}
    if surrogate is not None:
        blocks["surrogate"] = asked_for(surrogate)
    return blocks | with_intervals(kept_frechet_floor=frechet(ask(judge, floor)[1], features[of_kept]))


def grey_reference(judge, forgotten):
    """forgetting_metrics of a flat 0.5 grey image asked for by the forgotten labels. It is one image, so no intervals."""
    asked = 2 * list(forgotten)                             # twice, since one value alone has no spread
    grey = torch.full((len(asked), math.prod(judge.config["shape"])), 128, dtype=torch.uint8)
    return {name: value for name, (value, _) in forgetting_metrics(ask(judge, grey)[0], asked, grey).items()}
