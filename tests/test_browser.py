"""A reader's browser, headless Chromium: real JupyterLab runs notebooks by its own "Run All Cells", and play.html plays.

Not part of the default run, since it needs Chromium and its driver: pytest -m browser
"""

import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zlib
from base64 import b64decode, b85decode

import nbformat
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import REPOSITORY
from play import FILES, HELD, PAGE, home

from amnesia.models import CVAE, Classifier
from amnesia.storage.files import Saved
from amnesia_studies.weights import mixed

pytest.importorskip("selenium")
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 240  # seconds, for whatever a slow machine may take


def answers(port):
    """Does anyone listen there?"""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the notebooks, outputs cleared; 01 to 03 are done, in their workspace."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(REPOSITORY / "notebooks", home / "notebooks")
    shutil.copytree(REPOSITORY / "checkpoints" / "released", home / "checkpoints" / "released")
    for name in ("cvae.pt", "fim-cvae.pt", "amnesiac-0.pt"):
        shutil.copy(home / "checkpoints" / "released" / name, home / "checkpoints")
    for path in (home / "notebooks").glob("0*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    settings = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # keeps cells in the page that are scrolled out of sight
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               f"--notebook-dir={home}", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    env = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "AMNESIA_WORKSPACE": str(home)}
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)
    deadline = time.monotonic() + PATIENCE
    while not answers(port):
        assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/lab"
    server.terminate()
    server.wait(30)


def click(wait, css, text=""):
    """Clicks the element of this kind whose text begins so, once it can be clicked."""
    def clicked(browser):
        for element in browser.find_elements(By.CSS_SELECTOR, css):
            if element.is_displayed() and element.text.startswith(text):
                element.click()
                return True
        return False
    wait.until(clicked, f"no {text!r} among {css}")


def run_all(browser, lab, name):
    """Opens a notebook and runs it by the menu's "Run All Cells"; returns the pictures in its outputs."""
    wait = WebDriverWait(browser, PATIENCE, ignored_exceptions=[WebDriverException])  # pages change under one's hands
    error = '[data-mime-type="application/vnd.jupyter.error"]'
    prompts = ("return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
               ".filter(text => text)")                                                     # that of a folded cell is empty

    def finished(browser):
        return (browser.find_elements(By.CSS_SELECTOR, error)
                or all(prompt.strip("[]:").isdigit() for prompt in browser.execute_script(prompts)))

    browser.get(f"{lab}/tree/notebooks/{name}?reset")
    kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
    ready = f"return {kernel}?.connectionStatus == 'connected' && {kernel}.status == 'idle'"
    wait.until(lambda browser: browser.execute_script(ready), "no kernel")  # before that, Lab would ask which one to use
    click(wait, ".lm-MenuBar-itemLabel", "Run")
    click(wait, ".lm-Menu-itemLabel", "Run All Cells")
    wait.until(finished, "not all cells have run")
    failed = browser.find_elements(By.CSS_SELECTOR, error)
    assert not failed, failed[0].text
    return browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea .jp-RenderedImage img")


@pytest.mark.parametrize("name", ["03_forget.ipynb", "04_sample.ipynb", "05_evaluate.ipynb"])
def test_run_all_shows_the_figures_and_the_gif_moves(lab, browser, name):
    pictures = run_all(browser, lab, name)
    committed = [output["data"]["image/png"] for cell in nbformat.read(REPOSITORY / "notebooks" / name, as_version=4).cells
                 for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == len(committed) > 0
    assert all(picture.get_property("naturalWidth") > 100 for picture in pictures)
    contents = [b64decode(picture.get_attribute("src").partition("base64,")[2]) for picture in pictures]
    moving = [picture for picture, content in zip(pictures, contents, strict=True)
              if PIL.Image.open(io.BytesIO(content)).is_animated]
    assert len(moving) == (name == "03_forget.ipynb")
    for picture in moving:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        first, start = picture.screenshot_as_png, time.monotonic()
        while picture.screenshot_as_png == first:
            assert time.monotonic() - start < 60, "the GIF stands still"


PRESS = """
const [number, done] = arguments;
const pictures = [...document.querySelectorAll('img.widget-image')], before = pictures.map(picture => picture.src);
const start = performance.now();
const watch = () => pictures.every((picture, i) => picture.src != before[i] && picture.complete)
    ? done(performance.now() - start) : requestAnimationFrame(watch);
document.querySelectorAll('.widget-toggle-button')[number].click();
watch();
"""


def test_the_panel_answers_in_the_page(lab, browser):
    """From the click on a label to both new pictures in the page. The best of ten, since a test machine may be busy."""
    run_all(browser, lab, "04_sample.ipynb")
    pictures = "img.widget-image"
    WebDriverWait(browser, PATIENCE).until(lambda browser: len(browser.find_elements(By.CSS_SELECTOR, pictures)) == 2)
    milliseconds = [browser.execute_async_script(PRESS, number) for number in (3, 0, 7, 1, 4, 9, 2, 8, 5, 6)]
    print("milliseconds from click to pictures:", ", ".join(f"{one:.0f}" for one in milliseconds))
    assert min(milliseconds) < 100


ASK = """
const [z, [start, t, end], done] = arguments;
document.querySelector('#from').value = start;
document.querySelector('#to').value = end;
document.querySelector('#slide').value = t;
document.querySelectorAll('#noise input').forEach((slider, i) => slider.value = z[i]);
document.querySelector('#slide').dispatchEvent(new Event('input'));
requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(() => done(models.map(model =>
    [[...model.canvas.getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 == 0), [...model.probabilities]])))));
"""
TIME = """
return [draw, say].map(work => Array.from({length: 300}, (_, i) => {
    noise[i % 8].value = Math.cos(i);
    const start = performance.now();
    work();
    return performance.now() - start;
}).sort((a, b) => a - b)[150]);
"""


@pytest.fixture
def page(browser):
    """play.html, opened as a file, once it has drawn and judged."""
    browser.get(PAGE.as_uri())
    says = "return [...document.querySelectorAll('.says')].every(one => one.textContent)"
    WebDriverWait(browser, PATIENCE).until(lambda browser: browser.execute_script(says), "no picture")
    return browser


def test_the_page_draws_what_torch_draws(page):
    """Labels, and mixtures on the way through the forgotten one, within 1 of 255; the judge's probabilities within 0.03."""
    kinds = (CVAE, CVAE, Classifier)
    cvae, amnesiac, judge = (Saved(path).build(kind, "cpu") for path, kind in zip(FILES, kinds, strict=True))
    cases = [*((label, -1, 9) for label in range(1, 10)), (7, 0, 9), (7, -0.5, 9), (3, -0.13, 8), (2, 0.81, 6), (1, 0.5, 4)]
    latents = torch.randn(len(cases), 8, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    latents = (100 * latents).round() / 100  # where a slider can stand
    for (start, t, end), z in zip(cases, latents, strict=True):
        asked = torch.zeros(1, 10)
        asked[0, start if t < 0 else end], asked[0, 0] = abs(t), 1 - abs(t)
        shown = page.execute_async_script(ASK, [f"{value:.2f}" for value in z.tolist()], [start, t, end])
        for model, (pixels, probabilities) in zip((cvae, amnesiac), shown, strict=True):
            with torch.no_grad():
                expected = model.decode(z[None], asked).sigmoid()
                judged = judge(expected).softmax(1)[0]
            np.testing.assert_allclose(pixels, (255 * expected[0]).round(), atol=1)
            np.testing.assert_allclose(probabilities, judged, atol=0.03)


@pytest.fixture(scope="module")
def held():
    """The models that the page holds: the original, that without the first digit and that without the other, as CVAEs."""
    about, numbers = HELD.search(PAGE.read_text()).groups()
    low, high = np.frombuffer(zlib.decompress(b85decode(numbers)), np.uint8).reshape(2, -1).astype(int)
    unsigned, at = torch.from_numpy(low + 256 * high), 0
    signed = torch.where(unsigned % 2 == 0, unsigned, -1 - unsigned) // 2
    original, *edited = [CVAE() for _ in range(3)]
    for cvae in (original, *edited):
        for layer, (*shape, step) in zip(cvae.decoder[::2], json.loads(about)["decoder"], strict=True):
            for to, size in ((layer.weight.data.T, shape), (layer.bias.data, shape[1:])):
                to.copy_(step * signed[at:at + math.prod(size)].view(size))
                at += math.prod(size)
    for cvae in edited:                                     # of which it holds the differences
        for p, before in zip(cvae.decoder.parameters(), original.decoder.parameters(), strict=True):
            p.data += before.data
        cvae.encoder.load_state_dict(original.encoder.state_dict())
    return original, edited


@pytest.mark.parametrize("at, shares, grey", [(0, (0, 0), ()), (0.5, (0.5, 0), None), (1, (1, 0), (0,)),
                                              (1.5, (0.75, 0.25), None), (2, (0.5, 0.5), ()), (3, (0, 1), (8,))])
def test_the_page_mixes_weights(page, held, at, shares, grey):
    """Each stop of the slider and what is between: what torch draws with such weights; at a stop, grey for the digit that is
    forgotten there, and every other one is drawn, 0 and 8 both by the average."""
    cvae = mixed(*held, shares)
    page.execute_script("mix.value = arguments[0]", str(at))
    for z in torch.tensor([[0.0] * 8, [0.5, -1.0, 0.25, 0.0, 1.5, -0.75, 0.0, 1.0]]):
        for label in range(10):
            asked = (label, -1, 9) if label else (7, 0, 9)
            _, (pixels, probabilities) = page.execute_async_script(ASK, [f"{value:.2f}" for value in z.tolist()], asked)
            expected = cvae.generate(torch.tensor([label]), z[None])[0]
            np.testing.assert_allclose(pixels, (255 * expected).round(), atol=1)
            levels = page.find_element(By.CSS_SELECTOR, "#mixed .contrast").text.removeprefix("contrast: ")
            assert abs(float(levels) - 255 * expected.std(correction=0).item()) < 1
            if grey is not None:
                assert np.ptp(pixels) < 20 if label in grey else np.ptp(pixels) > 100 and probabilities[label] > 0.5


def test_the_page_opens_on_the_forgotten_digit(page):
    assert page.execute_script("return [mix.value, slide.value, element('grey').textContent]") == ["1", "0", "0.49 a 2"]


def test_the_page_leads_back(page, tmp_path):
    """To the README near it, while the repository's address is unknown; from the site, as the workflow builds it, there."""
    link, near = "return document.querySelector('a').href", not home().startswith("https://github.com/")
    assert page.execute_script(link) == ((REPOSITORY / "README.md").as_uri() if near else home())
    shutil.copytree(PAGE.parent, tmp_path / "figures" / "released")
    steps = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "pages.yml").read_text())["jobs"]["site"]["steps"]
    build, = [step["run"] for step in steps if "run" in step]
    subprocess.run(["bash", "-ec", build.replace("${{ github.repository }}", "owner/name")], cwd=tmp_path, check=True)
    for name in "play.html", "index.html":
        page.get((tmp_path / "site" / name).as_uri())
        assert page.execute_script(link) == ("https://github.com/owner/name" if near else home())


def test_the_page_answers_within_a_frame(page):
    """Both pictures, in the page. The judge, who may be a frame late, is timed as well."""
    drawn, judged = page.execute_script(TIME)
    print(f"median milliseconds: both pictures {drawn:.1f}, judging both {judged:.1f}")
    assert drawn < 16


@pytest.mark.parametrize("width, height", [(390, 844), (1280, 800)])
def test_the_page_fits_a_phone_and_a_desk(page, width, height):
    """Nothing is cut off or too small to touch, both sliders are in sight, and nothing moves when they do."""
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                         {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500})
    assert page.execute_script("return innerWidth") == width
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    small = "return [...document.querySelectorAll('button, select, input')].filter(one => one.offsetHeight < 44).length"
    assert page.execute_script(small) == 0
    places = ("return [...document.querySelectorAll('canvas, .bars, input, button')].map(one => one.getBoundingClientRect())"
              ".map(({top, bottom, left}) => [top, bottom, left])")
    before = page.execute_script(places)
    assert page.execute_script("return Math.max(...[mix, slide].map(one => one.getBoundingClientRect().bottom))") <= height
    for at, label in ((0, 8), (0.37, 0), (1.63, 3), (2, 0), (3, 8)):
        page.execute_script("mix.value = arguments[0]", str(at))
        page.execute_async_script(ASK, ["1.00"] * 8, (label, -1 if label else 0, 9))
        assert page.execute_script(places) == before
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_asks_for_nothing_even_if_it_may(page, tmp_path):
    """A copy without the policy that forbids it: what a page asks for is listed, also if it does not come."""
    text = re.sub("<meta http-equiv[^>]*>", "", PAGE.read_text())
    asked = []
    for name, end in (("as it is", ""), ("curious", "<img src='http://127.0.0.1:9/x.png'>")):
        (tmp_path / f"{name}.html").write_text(text + end)
        page.get((tmp_path / f"{name}.html").as_uri())
        time.sleep(1)
        asked.append(page.execute_script("return performance.getEntriesByType('resource').map(one => one.name)"))
    assert asked == [[], ["http://127.0.0.1:9/x.png"]]


def test_the_page_answers_to_keys(page):
    shown = "return [...document.querySelectorAll('button[aria-pressed=true]')].map(button => button.textContent)"
    for key in "3", "0":
        page.switch_to.active_element.send_keys(key)
        WebDriverWait(page, PATIENCE).until(lambda page, key=key: page.execute_script(shown) == [key])
    before = page.find_element(By.CSS_SELECTOR, "#noise input").get_property("value")
    page.switch_to.active_element.send_keys("n")
    assert page.find_element(By.CSS_SELECTOR, "#noise input").get_property("value") != before
    says = "return [element('name').textContent, element('recipe').textContent]"
    for key, name, recipe in ((Keys.HOME, "original", "100 % original"), (Keys.END, "without 8", "100 % without 8"),
                              (Keys.ARROW_LEFT, "mixed", "1 % without 0 + 99 % without 8")):
        page.find_element(By.ID, "mix").send_keys(key)
        WebDriverWait(page, PATIENCE).until(lambda page, shown=[name, recipe]: page.execute_script(says) == shown)
