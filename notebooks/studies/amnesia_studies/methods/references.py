"""The two references, which never learned the digit."""

import torch
import torch.nn.functional as F

from amnesia.data import PIXELS, Digits, grow
from amnesia.models import CVAE, negative_elbo_terms


def retrain(task):
    """Trained from scratch, as in notebook 01, on the images of the kept labels only."""
    return train_from_scratch(task, task.train.only(task.kept.tolist()))


def oracle(task):
    """Trained from scratch, as in notebook 01, with the forgotten labels' images replaced by uniform noise."""
    images, labels = task.train.images.clone(), task.train.labels
    replaced = torch.isin(labels, task.forgotten)
    noise = torch.randint(256, (int(replaced.sum()), PIXELS), generator=torch.Generator().manual_seed(task.seed))
    images[replaced] = noise.byte().to(images.device)
    return train_from_scratch(task, Digits(images, labels, "digits with noise"))


def train_from_scratch(task, digits):
    """Notebook 01 on these digits, with the settings that the original was trained with but the seed."""
    recipe = task.recipe
    torch.manual_seed(task.seed)
    cvae = CVAE(**task.cvae.config).to(digits.images.device)
    with torch.no_grad():
        cvae.decoder[-1].bias.copy_((digits.images.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3).logit())
    masks = F.dropout(torch.ones(1000, PIXELS, device=digits.images.device), recipe["dropout"])
    digits = grow(digits, task.seed)

    def loss():
        x, y = digits.batch(recipe["batch_size"])
        seen = x * masks[torch.randint(1000, (len(x),), device=x.device)]
        reconstruction, kl = negative_elbo_terms(cvae, x, y, seen=seen)
        return {"reconstruction": reconstruction.mean(), "kl": kl.mean()}

    return task.minimise(cvae, loss, steps=recipe["steps"], learning_rate=recipe["learning_rate"],
                         schedule=recipe["schedule"], weight_decay=recipe["weight_decay"])
