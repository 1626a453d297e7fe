"""The machinery behind the notebooks, a room a file.

What the five notebooks use is imported here. The studies import their own rooms: forgetting, baselines, attacks, studies,
sweep, tables.
"""

from .bounds import elbo
from .data import Digits, check_surrogate, class_names, forget_set, load_digits, one_hot
from .evaluation import ask, entropy, grey_reference, load_judge, model_metrics, reference_metrics, train_judge
from .figures import few_greys, gif, name_classes, panel, play, png, show, show_tile, tile
from .fisher import diagonal_fisher, squared_gradients
from .models import CVAE, Classifier, elbo_terms
from .training import fit, pick_device, progress
from .workspace import Stage, Workspace

__all__ = ["CVAE", "Classifier", "Digits", "Stage", "Workspace", "ask", "check_surrogate", "class_names", "diagonal_fisher",
           "elbo", "elbo_terms", "entropy", "few_greys", "fit", "forget_set", "gif", "grey_reference", "load_digits",
           "load_judge", "model_metrics", "name_classes", "one_hot", "panel", "pick_device", "play", "png", "progress",
           "reference_metrics", "show", "show_tile", "squared_gradients", "tile", "train_judge"]
