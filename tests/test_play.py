"""The page that needs no install, figures/released/play.html, and, with `pytest -m browser`, what it draws in Chromium."""

import hashlib
import json
import math
import re
import zlib
from base64 import b85decode

import numpy as np
import play
import pytest
import torch
from conftest import RELEASED

from amnesia import CVAE, Classifier

PATIENCE = 240  # seconds, for whatever a slow machine may take
STOPS, LAST = play.STOPS, len(play.STOPS) - 1
LATENTS = torch.tensor([[0.0] * 8, [0.5, -1.0, 0.25, 0.0, 1.5, -0.75, 0.0, 1.0]])


@pytest.fixture(scope="module")
def held():
    """The models that the page holds, as CVAEs: at each stop, and that without the other digit; and the judge's numbers."""
    about, numbers = play.HELD.search(play.PAGE.read_text()).groups()
    about = json.loads(about)
    low, high = np.frombuffer(zlib.decompress(b85decode(numbers)), np.uint8).reshape(2, -1).astype(int)
    unsigned, at, models = torch.from_numpy(low + 256 * high), 0, []
    signed = torch.where(unsigned % 2 == 0, unsigned, -1 - unsigned) // 2
    for i in range(len(about["stops"]) + 1):
        before = None if i == 0 else models[0] if i == len(about["stops"]) else models[-1]
        models.append(CVAE().requires_grad_(False))
        for j, (*shape, step) in enumerate(about["decoder"]):
            layer, coarser = models[-1].decoder[2 * j], about["coarser"] if before else 1
            for name, size in (("weight", shape), ("bias", shape[1:])):
                to, old = getattr(layer, name), getattr(before.decoder[2 * j], name) if before else 0
                to.copy_((coarser * step * signed[at:at + math.prod(size)].view(size)).t() + old)
                at += math.prod(size)
    *stops, other = models
    return stops, other


def released(kind, name):
    saved = torch.load(RELEASED / name, weights_only=True)
    model = kind(**saved["config"]).eval()
    model.load_state_dict(saved["state"])
    return model


def test_it_is_one_small_file_made_of_the_released_ones_which_leads_out_once_an_address_is_known(monkeypatch, tmp_path):
    before = play.PAGE.read_text()
    assert len(before.encode()) <= 4_000_000 and "default-src 'none'" in before  # which lets it ask no network for anything
    digests = json.loads(play.HELD.search(before)[1])["digests"]
    assert digests == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in play.FILES}
    (tmp_path / "play.html").write_text(before)
    monkeypatch.setattr(play, "PAGE", tmp_path / "play.html")
    play.write()                                                                # around the same numbers
    assert play.PAGE.read_text() == before
    monkeypatch.setattr(play, "REPOSITORY", tmp_path)
    for repository, address in (("owner/name", "https://github.com/owner/name"), ("", "")):
        (tmp_path / "pyproject.toml").write_text(f'[tool.amnesia]\nrepository = "{repository}"')
        play.write()
        assert re.findall('<a [^>]*href="([^"]*)"', play.PAGE.read_text()) == [address]


def test_a_run_keeps_the_decoder_at_its_stops():
    """Before the first step it is the original; each later stop is another; the run itself does not depend on the stops."""
    many, few, other = play.forgetting(0, (0, 3, 6)), play.forgetting(0, (6,)), play.forgetting(8, (6,))
    original = released(CVAE, "cvae.pt").decoder.state_dict()
    assert all(torch.equal(p, original[key]) for key, p in many[0].state_dict().items())
    assert len({decoder[0].weight.sum().item() for decoder in [*many, *other]}) == 4
    assert torch.equal(few[0][0].weight, many[2][0].weight)


def test_the_stops_are_a_run_that_ends_where_the_released_one_does(held):
    """The zero of z = 0 loses contrast from each stop to the next; at the end is what the released model draws."""
    stops, other = held
    zeros = [255 * model.generate(torch.tensor([0]), LATENTS[:1]).std().item() for model in stops]
    assert len(stops) == len(STOPS) and zeros == sorted(zeros, reverse=True) and zeros[0] > 70 and zeros[-1] < 2
    original, amnesiac = released(CVAE, "cvae.pt"), released(CVAE, "amnesiac-0.pt")
    labels, z = torch.arange(10), torch.zeros(10, 8)
    assert 255 * (stops[0].generate(labels, z) - original.generate(labels, z)).abs().max() < 1
    differences = 255 * (stops[-1].generate(labels, z) - amnesiac.generate(labels, z)).abs()
    assert differences.mean() < 1 and differences.max() < 10
    assert 255 * other.generate(torch.tensor([8]), LATENTS[:1]).std() < 5


ASK = """
const [z, [start, t, end], at, share, done] = arguments;
for (const [id, value] of [['from', start], ['to', end], ['slide', t], ['when', at], ['mix', share]]) {
    document.getElementById(id).value = value;
}
document.querySelectorAll('#noise input').forEach((slider, i) => slider.value = z[i]);
document.querySelector('#slide').dispatchEvent(new Event('input'));
requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(() => done(models.map(model =>
    [[...model.canvas.getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 == 0), [...model.probabilities]])))));
"""


@pytest.fixture
def page(browser):
    """play.html, opened as a file, once it has drawn and judged."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(play.PAGE.as_uri())
    says = "return [...document.querySelectorAll('.says')].every(one => one.textContent)"
    WebDriverWait(browser, PATIENCE).until(lambda browser: browser.execute_script(says), "no picture")
    return browser


def asked(page, z, asks, at=LAST, share=0):
    """(pixels, probabilities) of the left and of the right model."""
    return page.execute_async_script(ASK, [f"{value:.2f}" for value in z.tolist()], list(asks), str(at), str(share))


@pytest.mark.browser
def test_it_draws_what_torch_draws(page):
    """Labels, and mixtures on the way through the forgotten one: within 1 of 255 by the original and 4 by the last stop as
    they are, the judge's probabilities within 0.05."""
    cvae, judge = released(CVAE, "cvae.pt"), released(Classifier, "classifier.pt")
    cases = [*((label, -1, 9) for label in range(1, 10)), (7, 0, 9), (7, -0.5, 9), (3, -0.13, 8), (2, 0.81, 6), (1, 0.5, 4)]
    latents = torch.randn(len(cases), 8, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    for (start, t, end), z in zip(cases, (100 * latents).round() / 100, strict=True):  # where a slider can stand
        label = torch.zeros(1, 10)
        label[0, start if t < 0 else end], label[0, 0] = abs(t), 1 - abs(t)
        (pixels, probabilities), _ = asked(page, z, (start, t, end))
        with torch.no_grad():
            expected = cvae.decode(z[None], label).sigmoid()
            judged = judge(expected).softmax(1)[0]
        np.testing.assert_allclose(pixels, (255 * expected[0]).round(), atol=1)
        np.testing.assert_allclose(probabilities, judged, atol=0.05)


@pytest.mark.browser
@pytest.mark.parametrize("at, share", [(0, 0), (1, 0), (3, 0), (LAST, 0), (LAST, 0.5), (2, 0.36), (0, 1)])
def test_it_shows_each_stop_and_each_average(page, held, at, share):
    stops, other = held
    cvae = CVAE().requires_grad_(False)
    for p, a, b in zip(cvae.decoder.parameters(), stops[at].decoder.parameters(), other.decoder.parameters(), strict=True):
        p.copy_((1 - share) * a + share * b)
    for z in LATENTS:
        for label in range(10):
            _, (pixels, probabilities) = asked(page, z, (label, -1, 9) if label else (7, 0, 9), at, share)
            expected = cvae.generate(torch.tensor([label]), z[None])[0]
            np.testing.assert_allclose(pixels, (255 * expected).round(), atol=1)
            levels = page.find_element("css selector", "#mixed .contrast").text.removeprefix("contrast: ")
            assert abs(float(levels) - 255 * expected.std(correction=0).item()) < 1
            if (at, share) == (LAST, 0.5):        # the average of both draws both digits again
                assert np.ptp(pixels) > 100 and probabilities[label] > 0.5


@pytest.mark.browser
def test_it_answers_within_a_frame(page):
    """Both pictures; the judge may be a frame late."""
    milliseconds = page.execute_script("""return Array.from({length: 60}, (_, i) => {
        noise[i % 8].value = Math.cos(i);
        const start = performance.now();
        draw();
        return performance.now() - start;
    })""")
    assert np.median(milliseconds) < 16


@pytest.mark.browser
@pytest.mark.parametrize("width, height", [(390, 844), (1280, 800)])
def test_it_fits_a_phone_and_a_desk(page, width, height):
    """Nothing is cut off or too small to touch, and nothing moves when a slider does."""
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                         {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500})
    small = "return [...document.querySelectorAll('button, select, input')].filter(one => one.offsetHeight < 44).length"
    assert page.execute_script("return document.documentElement.scrollWidth") <= width and not page.execute_script(small)
    places = ("return [...document.querySelectorAll('canvas, .bars, input, button')].map(one => one.getBoundingClientRect())"
              ".map(({top, bottom, left}) => [top, bottom, left])")
    before = page.execute_script(places)
    for at, share, label in ((2, 0, 7), (5, 0.63, 3), (0, 1, 8)):
        asked(page, LATENTS[0], (label, -1, 9), at, share)
        assert page.execute_script(places) == before


@pytest.mark.browser
def test_it_answers_to_keys(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    shown = "return [...document.querySelectorAll('button[aria-pressed=true]')].map(button => button.textContent)"
    for key in "3", "0":
        page.switch_to.active_element.send_keys(key)
        WebDriverWait(page, PATIENCE).until(lambda page, key=key: page.execute_script(shown) == [key])
    before = page.find_element("css selector", "#noise input").get_property("value")
    page.switch_to.active_element.send_keys("n")
    assert page.find_element("css selector", "#noise input").get_property("value") != before
    for slider, key, says in (("when", Keys.HOME, "0 of 1,600 100 % + 0 %"), ("mix", Keys.END, "0 of 1,600 0 % + 100 %"),
                              ("when", Keys.ARROW_RIGHT, "93 of 1,600 0 % + 100 %")):
        page.find_element("id", slider).send_keys(key)
        WebDriverWait(page, PATIENCE).until(lambda page, says=says: says == " ".join(
            page.find_element("id", name).text for name in ("step", "recipe")))
