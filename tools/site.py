"""Builds the site from the notebooks and pages: python3 notebooks/run.py site, or python tools/site.py [--out site]

Every page of the repository in one look, the helper's documentation by pdoc, each lesson as slides, and in course/ the
lessons for students, without the answers, and for teachers. No page asks a network for anything: equations are MathML,
their font and the pictures lie beside the pages. A link to a file that is no page leads to the repository, once
pyproject.toml says where that is, and is plain text until then.
"""

import argparse
import importlib
import pkgutil
import re
import shutil
import sys
import tomllib
from copy import deepcopy
from pathlib import Path
from urllib.parse import unquote

import jinja2
import nbformat
import pdoc
import ziamath
from bs4 import BeautifulSoup
from fontTools import subset
from math_core import LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

ROOT, LOOK = Path(__file__).resolve().parents[1], Path(__file__).with_suffix("")
NOTEBOOKS, STUDIES, COURSE = ROOT / "notebooks", ROOT / "notebooks" / "studies", LOOK / "course.md"
LESSONS = sorted(NOTEBOOKS.glob("0[1-5]_*.ipynb"))
STUDY = sorted(STUDIES.glob("[0-9]*_*.ipynb"), key=lambda path: int(path.name.split("_")[0]))
PACKAGES, PLAY = (NOTEBOOKS / "amnesia", STUDIES / "amnesia_studies"), ROOT / "figures" / "released" / "play.html"
SECTIONS = {  # {section: {source file: page}}, in the order in which one reads
    "": {ROOT / "README.md": "index.html"},
    "Lessons": {path: f"{path.stem}.html" for path in LESSONS},
    "Studies": {STUDIES / "README.md": "studies.html"} | {path: f"study-{path.stem}.html" for path in STUDY},
    "More": {NOTEBOOKS / "README.md": "how-to.html", ROOT / "benchmarks" / "README.md": "benchmarks.html",
             ROOT / "CONTRIBUTING.md": "contributing.html", COURSE: "course.html"}}
PAGES = {path: name for section in SECTIONS.values() for path, name in section.items()}
ANSWERS = re.compile(r"\n*[ \t]*<details>.*?</details>", re.DOTALL)


class Renderer(IPythonRenderer):
    """Markdown with its equations as MathML, which browsers draw by themselves."""

    mathml = LatexToMathML()

    def inline_math(self, body, displaystyle=False):
        return self.mathml.convert_with_local_state(body, displaystyle=displaystyle)

    def block_math(self, body):
        return f'<div class="equation">{self.inline_math(body, displaystyle=True)}</div>'


def markdown(source):
    return MarkdownWithMath(Renderer(escape=False, exclude_anchor_links=True)).render(source)


def title_of(path):
    """The first heading of a Markdown file or a notebook."""
    text = path.read_text("utf-8") if path.suffix == ".md" else nbformat.read(path, as_version=4).cells[0].source
    return re.search("^# (.*)", text, re.MULTILINE)[1]


class Site:
    """Writes pages into a folder, and knows where links lead."""
    def __init__(self, out):
        self.out, self.characters = out, set()
        for folder in ("images", "figures", "course/student", "course/teacher"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        self.repository = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["amnesia"]["repository"]
        self.jinja = jinja2.Environment(loader=jinja2.FileSystemLoader(LOOK), autoescape=True, trim_blocks=True)
        self.jinja.globals.update(titles={name: title_of(path) for path, name in PAGES.items()}, order=list(PAGES.values()),
                                  sections={section: list(pages.values()) for section, pages in SECTIONS.items()},
                                  lessons=[path.stem for path in LESSONS])

    def notebook(self, notebook, stem):
        """A notebook's cells as HTML, its pictures as files in images/, each with what it shows as its alternative text."""
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": output.data.get("text/plain", "")}
        exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(LOOK)], filters={"html": markdown})
        exporter.register_preprocessor("nbconvert.preprocessors.ExtractOutputPreprocessor", enabled=True)
        body, resources = exporter.from_notebook_node(notebook, {"unique_key": stem, "output_files_dir": "images"})
        for name, data in resources["outputs"].items():
            (self.out / name).write_bytes(data)
        return body

    def lead(self, link, source):
        """Where a link leads on the site; None if it is to be plain text. Raises ValueError if it is dead."""
        path, mark, anchor = link.partition("#")
        if re.match(r"\w+:", link) or not path or source == COURSE:
            return link
        if not (target := (source.parent / unquote(path)).resolve()).exists():
            raise ValueError(f"{source.relative_to(ROOT)} has a dead link: {link}")
        if target in PAGES or target == PLAY:
            return PAGES.get(target, PLAY.name) + mark + anchor
        if target.suffix in (".png", ".gif", ".svg", ".jpg"):
            return Path(shutil.copy(target, self.out / "figures")).relative_to(self.out).as_posix()
        place = target.relative_to(ROOT).as_posix()
        return f"https://github.com/{self.repository}/blob/main/{place}" if self.repository else None

    def finished(self, body, source):
        """A page's content: links lead to pages, headings have GitHub's anchors, what is wide scrolls by itself."""
        soup, taken = BeautifulSoup(body, "html.parser"), {}
        for heading in soup.find_all(re.compile("^h[1-6]$")):
            slug = re.sub(r"[^\w\- ]", "", heading.get_text().strip().lower()).replace(" ", "-")
            taken[slug] = taken.get(slug, -1) + 1
            heading["id"] = f"{slug}-{taken[slug]}" if taken[slug] else slug
        for picture in soup.find_all("img"):
            if picture["src"].startswith("http"):  # a badge: its words, since no page asks a network
                picture.replace_with(picture.get("alt", ""))
            elif not picture["src"].startswith("images/"):
                picture["src"] = self.lead(picture["src"], source)
        for link in soup.find_all("a", href=True):
            link["href"] = self.lead(link["href"], source)
            if not link["href"]:
                link.unwrap()
        for table in soup.find_all("table"):
            table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
        for brace in soup.find_all("munder", accentunder="true"):  # style.css draws it: Chromium cuts parts of it off
            brace.contents[0]["class"] = "brace"
            brace.replace_with(brace.contents[0])
        self.characters.update(*(math.get_text() for math in soup.find_all("math")))
        return soup

    def write(self, name, title, main, inside=(), template="page.html.j2", **more):
        """A page, with the contents bar around it: `inside` are the (anchor, title) of its own parts."""
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        (self.out / name).write_text(self.jinja.get_template(template).render(
            title=title, main=str(main), inside=inside, here=name, top="../" * name.count("/"), **more), "utf-8")

    def page(self, source, name):
        """The page of a Markdown file or a notebook; of a lesson also its slides and both copies for a course."""
        title = title_of(source)
        if source.suffix == ".ipynb":
            notebook = nbformat.read(source, as_version=4)
            body = self.notebook(deepcopy(notebook), source.stem)
        else:
            body = markdown(self.jinja.get_template(COURSE.name).render() if source == COURSE else source.read_text("utf-8"))
        main = self.finished(body, source)
        self.write(name, title, main, [(heading["id"], heading.get_text()) for heading in main.find_all("h2")])
        if source in LESSONS:
            self.write(f"slides-{name}", title, main, template="slides.html.j2")
            self.course(notebook, source.name)

    def course(self, notebook, name):
        """course/teacher/ has a lesson as it is, course/student/ has it without outputs and without what is folded away."""
        student = deepcopy(notebook)
        for cell in student.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            cell.source = ANSWERS.sub("", cell.source)
        student.cells = [cell for cell in student.cells if cell.source.strip()]
        nbformat.write(student, self.out / "course" / "student" / name)
        nbformat.write(notebook, self.out / "course" / "teacher" / name)

    def api(self):
        """What pdoc makes of each module's docstrings, in this look."""
        sys.path[:0] = [str(package.parent) for package in PACKAGES]
        names = [name for package in PACKAGES for name in (package.name, *(
            one.name for one in pkgutil.walk_packages([str(package)], f"{package.name}.")))]
        pdoc.render.configure(show_source=False)
        modules = {name: pdoc.doc.Module(importlib.import_module(name)) for name in names}
        for name, module in modules.items():
            main = BeautifulSoup(pdoc.render.html_module(module, modules), "html.parser").main
            inside = [(one["id"], one["id"]) for one in main.find_all("section", id=True, recursive=False)]
            self.write(f"api/{name.replace('.', '/')}.html", name, main, inside, "api.html.j2", modules=names)

    def font(self):
        """STIX Two Math, cut down to what the equations need, with its licence in its own tables."""
        options = subset.Options(flavor="woff", layout_features=["*"], name_IDs=["*"])
        font = subset.load_font(Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf", options)
        cut = subset.Subsetter(options)
        italics = [0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]  # a single letter becomes one
        cut.populate(text="".join(self.characters) + "√", unicodes=italics)      # msqrt draws one that stands in no text
        cut.subset(font)
        subset.save_font(font, self.out / "math.woff", options)

    def build(self):
        for path, name in PAGES.items():
            self.page(path, name)
        self.api()
        self.font()
        light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
        (self.out / "style.css").write_text(self.jinja.get_template("style.css.j2").render(light=light, dark=dark))
        play = re.sub('id="home" href="[^"]*"', 'id="home" href="index.html"', PLAY.read_text("utf-8"))
        (self.out / "play.html").write_text(play, "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds the site.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="the folder to write, emptied first")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    Site(out).build()
    print(f"{len(list(out.rglob('*.html')))} pages in {out}: open {out / 'index.html'}")
