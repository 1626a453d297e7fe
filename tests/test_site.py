"""The site that tools/site.py builds: what its files say, and, with `pytest -m browser`, what Chromium shows.

Skipped where requirements-site.txt is not installed.
"""

import importlib.util
import re
import subprocess
import sys
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
    studies = sorted((REPOSITORY / "notebooks" / "studies").glob("[0-9]*_*.ipynb"))
    assert order == ["index.html", *(f"{path.stem}.html" for path in LESSONS), "studies.html",
                     *(f"study-{path.stem}.html" for path in studies), "how-to.html", "benchmarks.html", "contributing.html",
                     "course.html"]
    for name in order:
        assert {a["href"] for a in parsed(site / name).nav.find_all("a")} >= {*order, "play.html", "api/amnesia.html"}


def test_no_link_is_dead_and_none_leads_to_a_source_file(site):
    for path, page in pages(site).items():
        for tag, link in [(tag, tag[key]) for key in ("href", "src") for tag in page.find_all(**{key: True})]:
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if link.startswith(("https://", "http://")):
                assert tag.name == "a", f"{path.name} asks the network for {link}"
            elif link != "data:,":                          # the icon that there is not
                assert target.is_file() and target.is_relative_to(site), f"{path.name}: {link}"
                assert target.suffix not in (".md", ".py", ".ipynb") or "download" in tag.attrs, f"{path.name}: {link}"
                assert not anchor or parsed(target).find(id=anchor), f"{path.name}: {link}"


def test_equations_are_drawn_and_pictures_have_words(site):
    assert parsed(site / "03_forget.html").main.find_all("math", display="block") and (site / "math.woff").stat().st_size
    for path, page in pages(site).items():
        text = "".join(piece for piece in page.main.find_all(string=True) if not piece.find_parent(["pre", "code"]))
        assert not re.search(r"\$\$|\\(frac|mathbb|theta|sum)\b|\$[^\s$]+\$", text), path.name
        assert all(picture.get("alt") for picture in page.main.find_all("img")), path.name


def test_students_get_the_lessons_without_answers_and_teachers_with_them(site):
    for lesson in LESSONS:
        committed, student, teacher = (nbformat.read(path, as_version=4) for path in (
            lesson, site / "course" / "student" / lesson.name, site / "course" / "teacher" / lesson.name))
        told, asked = ("\n".join(cell.source for cell in one.cells) for one in (teacher, student))
        assert teacher == committed and "<summary>" in told and not any(cell.get("outputs") for cell in student.cells)
        without = re.sub(r"<details>.*?</details>", "", told, flags=re.DOTALL)
        assert "".join(asked.split()) == "".join(without.split()) != "".join(told.split())


def seen_as(browser, width, height):
    """The next pages are seen in a window of this size."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})


@pytest.mark.browser
def test_pages_fit_a_phone_ask_for_nothing_and_their_contents_unfold(site, browser):
    browser.get_log("browser")
    seen_as(browser, 390, 844)
    for path in pages(site):
        browser.get(path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, path.name
        asked = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert all(one.startswith(site.as_uri()) for one in asked), path.name
        assert [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"] == [], path.name
    shown = "return document.querySelector('nav').checkVisibility()"
    browser.get((site / "index.html").as_uri())
    assert not browser.execute_script(shown)
    browser.find_element("css selector", "header label").click()
    assert browser.execute_script(shown)


SLIDE = """
const done = arguments[0];
document.querySelectorAll("section:not([hidden]) details").forEach(one => one.open = true);
setTimeout(() => {      // once it has been fitted
const open = [...document.querySelectorAll("section")].filter(one => one.checkVisibility());
const outside = [...open[0].querySelectorAll("*"), open[0]].filter(one => {
    const {left, top, right, bottom} = one.getBoundingClientRect();
    const inside = left > -1 && top > -1 && right < innerWidth + 1 && bottom < innerHeight + 1;
    return one.checkVisibility() && !one.closest("math") && right > left && !inside;
});
done([open.length, open[0].textContent, outside.map(one => one.outerHTML.slice(0, 80)), slides.length]);
}, 50);
"""


@pytest.mark.browser
@pytest.mark.parametrize("width, height", [(1280, 720), (390, 844)])
def test_slides_are_slides(site, browser, width, height):
    """One at a time, each whole on the screen with its answers opened; together they have all of the lesson, once."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    seen_as(browser, width, height)
    for lesson in LESSONS:
        browser.get("about:blank")
        browser.get((site / f"slides-{lesson.stem}.html").as_uri())
        ready = "return slides.length && !!document.getElementById('number').textContent"
        WebDriverWait(browser, 60).until(lambda browser, ready=ready: browser.execute_script(ready))
        texts, many = [], 9
        while len(texts) < many:
            opened, text, outside, many = browser.execute_async_script(SLIDE)
            assert (opened, outside) == (1, []), f"{lesson.name}, slide {len(texts) + 1}"
            texts.append(text)
            browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        assert browser.execute_async_script(SLIDE)[1] == texts[-2] and browser.current_url.endswith(f"#{many - 1}")
        page, together = parsed(site / f"{lesson.stem}.html").main, "".join("".join(texts).split())
        shown = [block for block in page.find_all(["p", "pre"]) if not block.find_parent("details", "setup")]
        blocks = ["".join(block.get_text().split()) for block in shown]
        assert all(together.count(block) == blocks.count(block) for block in blocks if len(block) > 60)
