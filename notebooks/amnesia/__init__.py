"""The machinery behind the five notebooks, a room a file; what they use is imported here."""

from .checkpoints import Saved, Workspace, WorkspaceError
from .data import DataError, Pictures, load_pictures
from .device import hardware, pick_device, progress
from .evaluation import ask, entropy, grey_reference, load_judge, mean_interval, model_metrics, reference_metrics
from .figures import few_greys, gif, name_classes, panel, play, png, show, show_tile, subplots
from .fisher import diagonal_fisher, ewc_penalty, squared_gradients
from .models import CVAE, Classifier, bernoulli_nll, elbo, negative_elbo_terms, one_hot, picture
from .parameters import begin, check, check_parameters
from .stages import Stage
from .training import Diverged, fit, grow, jitter

__version__ = "2.1"
