"""The site that tools/site.py builds: what its files say, and, with `pytest -m browser`, what Chromium shows.

Skipped where requirements-site.txt is not installed.
"""

import importlib.util
import re
import subprocess
import sys
import time
from functools import cache

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pdoc", "math_core", "ziamath"))), reason="needs requirements-site.txt")]
LESSONS = sorted((REPOSITORY / "notebooks").glob("0[1-5]_*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a fresh site."""
    out = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, REPOSITORY / "tools" / "site.py", "--out", out], check=True, capture_output=True)
    return out


@pytest.fixture
def tool():
    """tools/site.py as a module; under another name, since Python has one of its own."""
    spec = importlib.util.spec_from_file_location("site_tool", REPOSITORY / "tools" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def parsed(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def pages(site):
    """{path: its HTML}, without play.html, which is no page of this look."""
    return {path: parsed(path) for path in sorted(site.rglob("*.html")) if path.name != "play.html"}


def test_all_notebooks_and_pages_are_there_in_one_order(site):
    order, name = [], "index.html"
    while name:
        order.append(name)
        after = parsed(site / name).find("a", rel="next")
        name = after and after["href"]
    studies = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*_*.ipynb"),
                     key=lambda path: int(path.stem.split("_")[0]))
    assert order == ["index.html", *(f"{path.stem}.html" for path in LESSONS), "studies.html",
                     *(f"study-{path.stem}.html" for path in studies), "how-to.html", "benchmarks.html", "contributing.html",
                     "course.html"]
    for name in order:
        assert {a["href"] for a in parsed(site / name).nav.find_all("a")} >= {*order, "play.html", "api/amnesia.html"}


def test_no_link_is_dead_and_none_leads_to_a_source_file(site):
    for path, page in pages(site).items():
        links = [(tag, tag[key]) for key in ("href", "src") for tag in page.find_all(**{key: True})]
        for tag, link in links:
            if link.startswith(("https://", "http://")):
                assert tag.name == "a", f"{path.name} asks the network for {link}"
                continue
            if link == "data:,":  # the icon that there is not
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file() and target.is_relative_to(site), f"{path.name}: {link}"
            assert target.suffix not in (".md", ".py", ".ipynb") or "download" in tag.attrs, f"{path.name}: {link}"
            assert not anchor or parsed(target).find(id=anchor), f"{path.name}: {link}"


def test_equations_are_drawn_and_pictures_have_words(site):
    from fontTools.ttLib import TTFont

    for path, page in pages(site).items():
        for code in page.main.find_all(["pre", "code"]):
            code.replace_with("")
        text = page.main.get_text()
        assert not re.search(r"\$\$|\\(frac|mathbb|theta|sum)\b|\$[^\s$]+\$", text), path.name
        assert all(picture.get("alt") for picture in page.main.find_all("img")), path.name
    assert parsed(site / "03_forget.html").main.find_all("math", display="block")
    font = TTFont(site / "math.woff")                 # of roots as of all else, in the sizes that they need
    assert parsed(site / "05_evaluate.html").main.find("msqrt") and font.getBestCmap()[ord("√")] in (
        font["MATH"].table.MathVariants.VertGlyphCoverage.glyphs)
    parsed.cache_clear()                                    # whose code was cut out


def test_a_page_with_its_pictures_is_small(site):
    shared = sum((site / name).stat().st_size for name in ("style.css", "math.woff"))
    for path, page in pages(site).items():
        files = {path, *(path.parent / picture["src"] for picture in page.find_all("img"))}
        assert shared + sum(file.stat().st_size for file in files) <= 2_000_000, path.name


def test_students_get_the_lessons_without_answers_and_teachers_with_them(site):
    for lesson in LESSONS:
        committed, student, teacher = (nbformat.read(path, as_version=4) for path in (
            lesson, site / "course" / "student" / lesson.name, site / "course" / "teacher" / lesson.name))
        assert teacher == committed
        told, asked = ("\n".join(cell.source for cell in one.cells) for one in (teacher, student))
        assert "<summary>" in told and "<summary>" not in asked
        folded = re.findall(r"<details>.*?</details>", told, re.DOTALL)
        for line in {line.strip() for part in folded for line in part.splitlines() if len(line.strip()) > 25}:
            assert line not in asked, f"{lesson.name} tells students: {line}"
        assert asked.count("# your answer") == told.count("# your answer")
        without = re.sub(r"<details>.*?</details>", "", told, flags=re.DOTALL)
        assert "".join(asked.split()) == "".join(without.split())
        assert not any(cell.get("outputs") for cell in student.cells)


def test_where_links_lead_with_and_without_an_address(tool, tmp_path):
    site, front = tool.Site(tmp_path), REPOSITORY / "README.md"
    for repository, where in (("", None), ("owner/name", "https://github.com/owner/name/blob/main/LICENSE")):
        site.repository = repository
        assert site.lead("LICENSE", front) == where
        assert ("<a" in str(site.finished('<a href="LICENSE">MIT</a>', front))) == bool(repository)
    assert site.lead("../README.md#run-it", LESSONS[0]) == "index.html#run-it"
    assert site.lead("https://arxiv.org", front) == "https://arxiv.org"
    with pytest.raises(ValueError, match=r"README\.md has a dead link: gone\.md"):
        site.lead("gone.md", front)
    badge = '<a href="https://colab.research.google.com"><img src="https://example.com/badge.svg" alt="Colab"></a>'
    assert str(site.finished(badge, front)) == '<a href="https://colab.research.google.com">Colab</a>'


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
};
const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const seen = new Set(), found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || seen.has(element) || !element.checkVisibility()) continue;
    seen.add(element);
    let behind = element;
    while (behind.parentElement && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(rgba).map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(1)}: ${element.className} ${element.textContent.slice(0, 40)}`);
}
return found;
"""


def seen_as(browser, width, height, scheme="light"):
    """The next pages are seen in a window of this size and in this scheme."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


@pytest.mark.browser
def test_pages_fit_a_phone_are_legible_in_the_dark_and_ask_for_nothing(site, browser):
    browser.get_log("browser")
    for path in pages(site):
        seen_as(browser, 390, 844)
        browser.get(path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, path.name
        for scheme in ("light", "dark"):
            seen_as(browser, 390, 844, scheme)
            assert browser.execute_script(CONTRAST) == [], f"{path.name}, {scheme}"
        asked = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert all(one.startswith(site.as_uri()) for one in asked), path.name
        assert [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"] == [], path.name
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


@pytest.mark.browser
def test_the_contents_unfold_on_a_phone(site, browser):
    shown = "return document.querySelector('nav').checkVisibility()"
    seen_as(browser, 390, 844)
    browser.get((site / "index.html").as_uri())
    assert not browser.execute_script(shown)
    browser.find_element("css selector", "header label").click()
    assert browser.execute_script(shown)
    seen_as(browser, 1200, 800)
    browser.get((site / "index.html").as_uri())
    assert browser.execute_script(shown)


SLIDE = """
const open = [...document.querySelectorAll("section")].filter(one => one.checkVisibility());
const outside = [...open[0].querySelectorAll("*"), open[0]].filter(one => {
    const {left, top, right, bottom} = one.getBoundingClientRect();
    const inside = left > -1 && top > -1 && right < innerWidth + 1 && bottom < innerHeight + 1;
    return one.checkVisibility() && !one.closest("math") && right > left && !inside;
});
const pictures = [...open[0].querySelectorAll("img")].map(one => one.src).join();
return [open.length, open[0].textContent, outside.map(one => one.outerHTML.slice(0, 80)), slides.length, pictures];
"""


@pytest.mark.browser
@pytest.mark.parametrize("width, height", [(1280, 720), (1024, 768), (390, 844)])
def test_slides_are_slides(site, browser, width, height):
    """One at a time, each whole on the screen, an answer opened or not; together they have all of the lesson, once."""
    from selenium.webdriver.common.keys import Keys

    for lesson in LESSONS:
        seen_as(browser, width, height)
        browser.get("about:blank")
        browser.get((site / f"slides-{lesson.stem}.html").as_uri())
        deadline = time.monotonic() + 60
        while not browser.execute_script("return slides.length && !!document.getElementById('number').textContent"):
            assert time.monotonic() < deadline
        texts, pictures, many = [], [], 2
        while len(texts) < many:
            browser.execute_script("document.querySelectorAll('section:not([hidden]) details').forEach(one => one.open = 1)")
            time.sleep(0.05)
            open_ones, text, outside, many, picture = browser.execute_script(SLIDE)
            assert (open_ones, outside) == (1, []), f"{lesson.name}, slide {len(texts) + 1}"
            texts.append(text)
            pictures.append(picture)                    # two slides may have one heading and a picture each
            browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        assert many > 8 and len({*zip(texts, pictures, strict=True)}) == many
        browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        assert browser.execute_script(SLIDE)[1] == texts[-2] and browser.current_url.endswith(f"#{many - 1}")
        page = parsed(site / f"{lesson.stem}.html").main
        shown = [block for block in page.find_all(["p", "pre"]) if not block.find_parent("details", "setup")]
        blocks = ["".join(block.get_text().split()) for block in shown]
        together = "".join("".join(texts).split())
        assert all(together.count(block) == blocks.count(block) for block in blocks if len(block) > 60)
