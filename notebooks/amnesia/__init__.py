"""The machinery behind the five notebooks, a room a file; what they use is imported here."""

from .data import Digits, class_names, grow, load_digits, one_hot
from .evaluation import (
    ask,
    elbo,
    entropy,
    grey_reference,
    kept_change,
    load_judge,
    model_metrics,
    reference_metrics,
    train_judge,
)
from .figures import few_greys, filmstrip, gif, name_classes, png, show, show_tile, subplots
from .fisher import diagonal_fisher, squared_gradients
from .models import CVAE, Classifier, bernoulli_nll, edits, negative_elbo_terms
from .panel import check, panel, play
from .processor import pick_device
from .storage.parameters import check_parameters, forget_from, settings_of
from .storage.stage import Stage
from .storage.workspace import Workspace
from .training import fit, progress

__all__ = ["CVAE", "Classifier", "Digits", "Stage", "Workspace", "ask", "bernoulli_nll", "check", "check_parameters",
           "class_names", "diagonal_fisher", "edits", "elbo", "entropy", "few_greys", "filmstrip", "fit", "forget_from",
           "gif", "grey_reference", "grow", "kept_change", "load_digits", "load_judge", "model_metrics", "name_classes",
           "negative_elbo_terms", "one_hot", "panel", "pick_device", "play", "png", "progress", "reference_metrics",
           "settings_of", "show", "show_tile", "squared_gradients", "subplots", "train_judge"]
