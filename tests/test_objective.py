"""The objective of notebooks 03 and 01, term by term: what their cells' losses are worth and where they pull; and that of the
studies, which is the same."""

from copy import deepcopy

import pytest
import torch
import watching
from cells import run_here
from watching import FORGOTTEN, KEPT, Watched, elbo_terms

from amnesia import CVAE, Stage, Workspace
from amnesia_studies.methods import Task, distilled, retrain


@pytest.fixture(scope="module")
def notebook_03(tmp_path_factory):
    """notebook_03(**parameters): what its cells define up to the loss, with a model on its way; (names, original, model)."""
    names = run_here("03_forget", "def loss():", workspace=str(tmp_path_factory.mktemp("03")), forget=[3, 8])
    pristine, as_begun = names["original"], {**vars(names["stage"])}

    def define(**parameters):
        vars(names["stage"]).update(as_begun | parameters)              # what the cells go by
        names["original"], names["cvae"] = deepcopy(pristine), watching.moved(deepcopy(pristine))
        torch.manual_seed(1)
        return names, Watched(names["original"]), Watched(names["cvae"])

    return define


@pytest.mark.parametrize("surrogate", ["noise", 7])
@pytest.mark.parametrize("remember", ["distil", "replay"])
def test_notebook_03(notebook_03, remember, surrogate):
    names, original, model = notebook_03(remember=remember, surrogate=surrogate, lam=0.7, gamma=0.6, batch_size=80)
    terms = names["loss"]()
    if surrogate == "noise":
        x, y, *_ = model.told(model.encoded, FORGOTTEN)
        watching.assert_noise_pairs(x, y)
    elif remember == "distil":
        watching.assert_drawn_alike(original.asked(model.told(model.decoded, FORGOTTEN)[0])[0], torch.tensor([7]))
    distilled = surrogate == 7 and remember == "distil"
    forget = sum(watching.divergence(original, model, FORGOTTEN) if distilled else elbo_terms(model, FORGOTTEN))
    rehearsed = sum(elbo_terms(model, KEPT) if remember == "replay" else watching.divergence(original, model, KEPT))
    assert (len(forget), len(rehearsed)) == (48, 80)
    fim = names["stage"].files["fim"].state
    watching.assert_terms(terms, {"forget": forget.mean(), "remember": 0.6 * rehearsed.mean(),
                         "protect": watching.spring(original, model, fim, 0.7)}, model)
    if remember == "replay":                                            # what is shown is what the frozen copy draws
        drawn = torch.cat([logits.sigmoid() for _, y, logits in original.decoded])
        asked = torch.cat([y for _, y, _ in original.decoded]).argmax(1)
        shown, told, *_ = model.told(model.encoded, KEPT)
        assert torch.equal(asked[-80:], told.argmax(1)) and (shown - drawn[-80:]).abs().max() < 1e-6
        assert torch.cat([z for z, *_ in original.decoded]).std() == pytest.approx(1, abs=0.15)
        assert (asked[:-80] == 7).all() and (len(asked) - 80 == (0 if surrogate == "noise" else 48))


def test_notebook_03_draws_anew_at_every_step_and_every_label_alike(notebook_03):
    names, original, model = notebook_03()
    with torch.no_grad():
        for _ in range(8):
            names["loss"]()
    (x, y, *_), (z, told, _) = model.told(model.encoded, FORGOTTEN), model.told(model.decoded, KEPT)
    watching.assert_drawn_alike(y[::2], FORGOTTEN), watching.assert_drawn_alike(told, KEPT)
    assert (watching.different(x), watching.different(z)) == (8 * 48, 8 * 96)
    asked, _ = original.asked(z)
    assert torch.equal(asked, told)


@pytest.mark.parametrize(("remember", "held"), [("distil", [0, 1, 2, 4, 5, 6, 7, 8, 9]),
                                                ("replay", [1, 2, 4, 5, 6, 7, 8, 9])])
def test_notebook_03_holds_grey_what_was_forgotten_before_and_does_not_rehearse_it(tmp_path, remember, held):
    store = Workspace(tmp_path)
    amnesiac = store.load("amnesiac-0.pt")
    fim = {name: torch.ones_like(value) for name, value in amnesiac.state.items()}
    Stage(store, "fim-amnesiac-0.pt", {"dataset": "MNIST"}, [amnesiac]).save(state=fim, config={}, metrics={})
    names = run_here("03_forget", "def loss():", workspace=str(tmp_path), model="amnesiac-0", forget=[3], remember=remember)
    assert names["labels_forgotten"].tolist() == [3] and sorted(names["labels_kept"].tolist()) == held
    assert names["stage"].path.name == "amnesiac-0-3.pt" and names["stage"].record["settings"]["forgotten_before"] == [0]


@pytest.mark.usefixtures("with_few")
def test_notebook_01_scores_the_whole_image_and_shows_the_encoder_less(tmp_path):
    names = run_here("01_train_cvae", "stage.save(", workspace=str(tmp_path), steps=1, batch_size=64, dropout=0.2)
    batch, drawn = names["examples"].batch, []
    names["examples"].batch = lambda size: drawn.append(batch(size)) or drawn[-1]
    names["cvae"] = watching.moved(names["cvae"])
    model = Watched(names["cvae"])
    terms, (x, y) = names["loss"](), drawn[0]
    shown, told, *_ = model.encoded[0]
    seen = shown[x > 0] / x[x > 0]
    assert torch.equal(told, y.double()) and 0.15 < (seen == 0).double().mean() < 0.25
    torch.testing.assert_close(seen[seen > 0], torch.full_like(seen[seen > 0], 1 / 0.8), rtol=1e-5, atol=0)
    reconstruction, kl = elbo_terms(model, torch.arange(10), x.double())
    watching.assert_terms(terms, {"reconstruction": reconstruction.mean(), "kl": kl.mean()}, model)


# Two methods of the studies are the notebooks' own, to the bit: they are what the released rows were made by

def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_distillation_is_notebook_03_to_the_bit(tmp_path, few):
    names = run_here("03_forget", "stage.save(", workspace=str(tmp_path), forget=[3, 8], steps=16, seed=5)
    files = names["stage"].files
    task = Task(files["original"].build(CVAE, "cpu"), files["fim"].state, few[0], FORGOTTEN, KEPT, seed=5, scale=0.01)
    assert same(distilled(task), names["cvae"]) and not same(task.original, names["cvae"])


@pytest.mark.usefixtures("with_few")
def test_retraining_on_all_digits_is_notebook_01_to_the_bit(tmp_path, few):
    """Of copies moved a little, too."""
    names = run_here("01_train_cvae", "stage.save(", workspace=str(tmp_path), steps=25, seed=5)
    task = Task(CVAE(), {}, few[0], torch.tensor([]), torch.arange(10), seed=5, recipe=vars(names["stage"]))
    assert same(retrain(task), names["cvae"])
