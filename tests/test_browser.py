"""A reader's browser, headless Chromium: real JupyterLab runs notebooks by its own "Run All Cells".

Not part of the default run, since it needs Chromium and its driver: pytest -m browser
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from base64 import b64decode

import nbformat
import PIL.Image
import pytest
from conftest import RELEASED, REPOSITORY

pytest.importorskip("selenium")
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 240  # seconds, for whatever a slow machine may take


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the notebooks, outputs cleared, where 01 to 04 are done."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(REPOSITORY / "notebooks", home / "notebooks")
    shutil.copytree(RELEASED, home / "checkpoints" / "released")
    for path in RELEASED.glob("*.pt"):
        shutil.copy(path, home / "checkpoints")
    subprocess.run([sys.executable, "-m", "nbconvert", "--clear-output", *(home / "notebooks").glob("0*.ipynb")], check=True)
    settings = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # keeps cells in the page that are scrolled out of sight
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               f"--notebook-dir={home}", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    server = subprocess.Popen(command, cwd=home, env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")})
    yield f"http://127.0.0.1:{port}/lab"
    server.terminate()
    server.wait(30)


def run_all(browser, lab, name):
    """Opens a notebook and runs it by "Run All Cells"; returns the pictures in its outputs."""
    wait = WebDriverWait(browser, PATIENCE, ignored_exceptions=[WebDriverException])    # it starts, and pages change
    wait.until(lambda browser: not browser.get(f"{lab}/tree/notebooks/{name}?reset"), "no JupyterLab")
    kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
    ready = f"return {kernel}?.connectionStatus == 'connected' && {kernel}.status == 'idle'"
    wait.until(lambda browser: browser.execute_script(ready), "no kernel")  # before that, Lab would ask which one to use
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    error = '[data-mime-type="application/vnd.jupyter.error"]'
    prompts = ("return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
               ".filter(text => text)")                                                     # that of a folded cell is empty
    wait.until(lambda browser: browser.find_elements(By.CSS_SELECTOR, error) or all(
        prompt.strip("[]:").isdigit() for prompt in browser.execute_script(prompts)), "not all cells have run")
    assert not [failed.text for failed in browser.find_elements(By.CSS_SELECTOR, error)]
    return browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea .jp-RenderedImage img")


def test_run_all_shows_the_figures_and_the_gif_moves(lab, browser):
    pictures = run_all(browser, lab, "03_forget.ipynb")
    committed = nbformat.read(REPOSITORY / "notebooks" / "03_forget.ipynb", as_version=4).cells
    assert len(pictures) == sum("image/png" in output.get("data", {}) for cell in committed for output in cell.get("outputs", []))
    assert all(picture.get_property("naturalWidth") > 100 for picture in pictures)
    moving, = [picture for picture in pictures if PIL.Image.open(io.BytesIO(
        b64decode(picture.get_attribute("src").partition("base64,")[2]))).is_animated]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", moving)
    first = moving.screenshot_as_png
    WebDriverWait(browser, 60).until(lambda browser: moving.screenshot_as_png != first, "the GIF stands still")


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
    WebDriverWait(browser, PATIENCE).until(lambda browser: len(browser.find_elements(By.CSS_SELECTOR, "img.widget-image")) == 2)
    assert min(browser.execute_async_script(PRESS, number) for number in (3, 0, 7, 1, 4, 9, 2, 8, 5, 6)) < 100
