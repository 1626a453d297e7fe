"""One table of all released runs: what its figures are, that it lacks none, and that each has its address."""

import json
from inspect import signature

import numpy as np
import pandas as pd
import pytest
from conftest import RELEASED

from amnesia.checkpoints import sha256
from amnesia_studies.experiment import SECOND_JUDGE
from amnesia_studies.logs import Log
from amnesia_studies.methods import METHODS, OF_DENOISERS
from amnesia_studies.runs import RUNS
from amnesia_studies.tables import controls, figures, less, markdown, released, spread, summary, table

FILES = "cvae.pt", "fim-cvae.pt", "classifier.pt", "classifier-1.pt", "denoiser.pt", "fim-denoiser.pt"


def record(method, seed, elbo=-90.0, forget=(0,), line=1, **more):
    """One record as a log holds it, whose kept ELBO is `elbo`."""
    result = {"forgotten_probability": 0.5, "entropy": 1.0, "kept_accuracy": 0.75,
              "kept_accuracy_worst": 0.7, "kept_frechet": 2.0, "recall": 0.8, "kept_elbo": elbo,
              "forgotten_elbo": -9.0, **more}
    return {"settings": {"method": method, "forget": list(forget), "seed": seed}, "result": result, "line": line}


LOOK = {"share": [0.2, *[0.9] * 7, 0.4, 0.5], "P": [0.1] * 9 + [0.3], "H": list(range(10)), "contrast": [30.0] * 10}
HITS = {"hits": 3, "n": 4}


@pytest.mark.parametrize(("result", "forget", "expected"), [
    (record("a", 0)["result"], [0], {"P": 0.5, "P − grey": 0.375, "H": 1.0, "H / grey": 0.5, "kept accuracy": 0.75,
     "worst kept digit": 0.7, "Fréchet": 2.0, "recall": 0.8, "kept ELBO": -90.0, "forgotten ELBO": -9.0}),
    ({"kept_iw": -1.0, "forgotten_iw": -2.0, "forgotten_refitted_iw": -3.0, "forgotten_contrast": 7.0}, [0],
     {"kept bound": -1.0, "forgotten bound": -2.0, "decoder-only bound": -3.0, "contrast": 7.0}),
    ({"attacks": {"z alone": HITS, "inversion from 100 images": {"hits": 1, "n": 2}}}, [0],
     {"z alone": 0.75, "inversion from 100 images": 0.5}),
    (HITS, [0], {"one label": 0.75}),
    ({"inversion": HITS, "unconditional": [6, 4]}, [1], {"inversion from 100 images": 0.75, "drawn without a label": 0.4}),
    ({"savings": {"10": {"digit": 11, "mirrored": {"4": 13, "5": 14}}}}, [0],
     {"steps, k = 10": 11, "mirrored, k = 10": 13.5, "savings, k = 10": 11 / 13.5}),
    ({"average": LOOK, "sums": {"1.0": LOOK}, "models": [LOOK] * 2}, [0, 8],       # of a mixture all labels count
     {f"{name}{what}": value for name in ("average", "sum × 1.0") for what, value in {
         "": 0.3, ", kept": (7 * 0.9 + 0.5) / 8, ", H": 4, ", contrast": 30, ", P(0)": 0.1, ", P(8)": 0.1}.items()}),
    ({"line": {"0.5": LOOK}, "rounded": {"8": LOOK}}, [8, 0],                      # of a line the first
     {f"{name}{what}": value for name in ("0.5 of the way", "8 bits") for what, value in {
         "": 0.4, ", kept": (0.2 + 7 * 0.9 + 0.5) / 9, ", H": 8, ", contrast": 30, ", P(8)": 0.1}.items()})])
def test_figures_are_those_of_the_result(result, forget, expected):
    assert figures(result, forget, (0.125, 2.0)) == pytest.approx(expected)


def test_a_line_says_its_method_and_the_options_that_are_not_its_own():
    settings = {"method": "selective amnesia", "forget": [3, 8], "seed": 2, "drawn": 0.5, "lam": 0.4, "bounds": True}
    unmeasured = {"settings": {"method": "naive", "forget": [0], "seed": 1, "lam": 1.0}, "result": {}, "line": 7}
    rounds = {"settings": {"forget": [4, 2], "seed": 1}, "result": {"rounds": [record("", 0)["result"]] * 2}, "line": 8}
    lines = table([{**record("a", 0), "settings": settings}, unmeasured, rounds], "studies", "MNIST", lambda forget: (0.1, 1.0))
    assert lines["name"].tolist() == ["selective amnesia, drawn = 0.5", "naive, λ = 1", "in turn", "in turn"]
    assert lines["label"].tolist() == ["3, 8", "0", "4", "4, 2"] and lines["line"].tolist() == [1, 7, 8, 8]
    assert lines["lam"].tolist()[:2] == [0.4, 1.0]
    assert lines["P − grey"].tolist()[0] == 0.4 and np.isnan(lines["P"][1])


def test_a_table_pairs_by_labels_and_seed():
    lines = table([record("a", 0, -5.0), record("a", 1, -7.0, kept_accuracy=0.76), record("a", 3, -1.0),
                   record("b", 0, -4.0), record("b", 1, -3.0)])
    change = less(lines, "b")
    assert change["kept ELBO"].tolist()[:2] == [-1.0, -4.0] and np.isnan(change["kept ELBO"][2])
    assert change["kept accuracy"][1] == pytest.approx(1.0)              # in points
    assert change["P"].tolist() == lines["P"].tolist()                   # which stands against grey already
    assert less(lines, "b", on=["original", "label"])["kept ELBO"].tolist()[:3] == [-1.5, -3.5, 2.5]
    texts = summary(change, {"kept ELBO": "+.1f"})
    assert markdown(texts).splitlines() == ["| name | n | kept ELBO |", "| --- | --- | --- |", "| a | 2 | -2.5 ± 2.1 |",
                                            "| b | 2 | +0.0 ± 0.0 |"]
    twice = pd.concat([lines, lines.assign(**{"kept ELBO": 0.0})])       # the same runs in a second log: the first counts
    assert summary(twice, {"kept ELBO": ".1f", "8 bits": ".1f"})["kept ELBO"].tolist() == ["-4.3 ± 3.1", "-3.5 ± 0.7"]
    assert less(twice, "b")["kept ELBO"].tolist()[:2] == [-1.0, -4.0]
    assert spread(pd.Series([-0.01]), "+.1f") == "+0.0"


def test_the_controls_stand_by_what_they_knew_and_averages_by_both_digits():
    records = {record["line"]: record for record in Log(RELEASED / "controls.jsonl").records().values()}
    assert len(controls()) == sum(record["settings"]["run"] != "prediction" for record in records.values())
    for _, row in controls().iterrows():
        settings, result = records[row["line"]]["settings"], records[row["line"]]["result"]
        assert row["name"].startswith("knew" if settings["original"] == "original" else "never knew")
        assert ("λ" in row["name"]) == (settings.get("lam", 0.3) != 0.3) and settings.get("name", "") in row["name"]
        assert ("F " in row["name"], ", decoder" in row["name"]) == ("importance" in settings, bool(settings.get("matched")))
        if "average" in result:
            expected = {"label": "0, 8", "average, 8": result["average"]["share"][8],
                        "pictures mixed, 0": result["pictures_share"][0]}
        elif "strict_share" in result:
            expected = {"strict judge, half-way": result["strict_share"]["halfway"],
                        "mirror images inverted": pytest.approx(sum(result["mirrored_inversion"].values()) / 5)}
        else:
            expected = {"0.5 of the way": result["halfway_share"], "8 bits, H": result["bits8_H"], **figures(
                {"savings": result["savings"]}, [0])}
        assert {heading: row[heading] for heading in expected} == expected


def test_every_line_of_every_released_log_is_in_the_table_unless_its_code_is_gone():
    """And can be made again, from the released files: its method and measurement take its settings."""
    gone, digests = 0, {name: sha256((RELEASED / name).read_bytes()) for name in FILES}
    for path in {*RELEASED.rglob("*.jsonl")} - {RELEASED / "controls.jsonl"}:       # whose table is controls()
        runs, clothes = released().query("log == @path.stem"), path.parent != RELEASED
        runs = runs[(runs["original"] == "FashionMNIST") == clothes]
        gone += len(path.read_text().splitlines()) - runs["line"].nunique()
        for lineage in runs["record"].str["lineage"] if not clothes and path.stem != "springs-5000" else ():
            assert {name: digests.get(name) for name in lineage if name.endswith(".pt")}.items() <= lineage.items()
            assert "60,000" in " ".join(lineage) and len(lineage) == 5 + (path.stem in SECOND_JUDGE)
    assert gone == 66
    for _, run in released().iterrows():
        takes = [RUNS[None]]
        if "method" in run["settings"]:
            methods = OF_DENOISERS if run["original"] == "diffusion" else METHODS
            takes = [RUNS[run["log"]], methods[run["method"]], METHODS["selective amnesia"]]   # whose options distilled() takes
        assert run["settings"].keys() - {"method"} <= {name for one in takes for name in signature(one).parameters}


def test_grey_is_that_of_the_evaluations_but_of_clothes_whose_judge_is_another():
    grey = json.loads((RELEASED / "evaluation-8.json").read_text())["reference"]["grey"]
    runs = released().query("original == 'MNIST' and label == '8' and log == 'studies'")
    assert (runs["P"] - runs["P − grey"]).to_numpy() == pytest.approx(grey["forgotten_probability"])
    assert (runs["H"] / runs["H / grey"]).to_numpy() == pytest.approx(grey["entropy"])
    assert released().query("original == 'FashionMNIST'")["P − grey"].isna().all()
