"""Builds the site from the notebooks and pages: python3 notebooks/run.py site, or python tools/site.py [--out site]

Every page of the repository in one look, the helper's documentation by pdoc, each lesson as slides, and in course/ the lessons
for students, without the answers, and for teachers. No page asks a network for anything: equations are MathML, their font and
the pictures lie beside the pages. A link to a file that is no page leads to the repository, once pyproject.toml says where that
is, and is plain text until then. What it needs besides the notebooks' own packages is in requirements-site.txt.
"""

import argparse
import importlib
import io
import pkgutil
import re
import shutil
import sys
import tomllib
from copy import deepcopy
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import jinja2
import nbformat
import pdoc
import ziamath
from bs4 import BeautifulSoup
from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

ROOT, LOOK = Path(__file__).resolve().parents[1], Path(__file__).with_suffix("")
NOTEBOOKS, STUDIES = ROOT / "notebooks", ROOT / "notebooks" / "studies"
LESSONS = sorted(NOTEBOOKS.glob("0[1-5]_*.ipynb"))
PACKAGES = NOTEBOOKS / "amnesia", STUDIES / "amnesia_studies"
PICTURES = (".png", ".gif", ".svg", ".jpg")
ANSWERS = re.compile(r"\n*[ \t]*<details>.*?</details>", re.DOTALL)


def numbered(folder):
    """The notebooks of a folder, in the order of their numbers."""
    return sorted(folder.glob("[0-9]*_*.ipynb"), key=lambda path: int(path.name.split("_")[0]))


def contents():
    """{section: {source file: page's name}}, in the order in which one reads."""
    return {"": {ROOT / "README.md": "index.html"},
            "Lessons": {path: f"{path.stem}.html" for path in LESSONS},
            "Studies": {STUDIES / "README.md": "studies.html", **{path: f"study-{path.stem}.html" for path in numbered(STUDIES)}},
            "More": {NOTEBOOKS / "README.md": "how-to.html", ROOT / "benchmarks" / "README.md": "benchmarks.html",
                     ROOT / "CONTRIBUTING.md": "contributing.html", LOOK / "course.md": "course.html"}}


class Renderer(IPythonRenderer):
    """Markdown with its equations as MathML, which browsers draw by themselves."""

    mathml = LatexToMathML()

    def block_math(self, body):
        return f'<div class="equation">{self.mathml.convert_with_local_state(body, displaystyle=True)}</div>'

    def inline_math(self, body):
        return self.mathml.convert_with_local_state(body, displaystyle=False)


class Exporter(HTMLExporter):
    @jinja2.pass_context
    def markdown2html(self, context, source):
        return markdown(source)


def markdown(source):
    return MarkdownWithMath(Renderer(escape=False, exclude_anchor_links=True)).render(source)


class Site:
    """Writes pages into a folder, and knows where links lead."""

    def __init__(self, out):
        self.out, self.sections = out, contents()
        self.pages = {path: name for section in self.sections.values() for path, name in section.items()}
        self.repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["amnesia"]["repository"]
        self.jinja = jinja2.Environment(loader=jinja2.FileSystemLoader(LOOK), autoescape=True, trim_blocks=True)
        self.titles = {path: title_of(path) for path in self.pages}
        self.known = {**self.pages, ROOT / "figures" / "released" / "play.html": "play.html"}
        self.characters = set()

    def notebook(self, notebook, stem):
        """A notebook's cells as HTML, its pictures as files in images/, each with what it shows as its alternative text."""
        notebook = deepcopy(notebook)
        for output in (output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output):
            if "image/png" in output.data:
                output.metadata["image/png"] = {"alt": output.data.get("text/plain", "")}
        exporter = Exporter(template_name="notebook", extra_template_basedirs=[str(LOOK)])
        exporter.register_preprocessor("nbconvert.preprocessors.ExtractOutputPreprocessor", enabled=True)
        body, resources = exporter.from_notebook_node(notebook, {"unique_key": stem, "output_files_dir": "images"})
        for name, data in resources["outputs"].items():
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.out / name).write_bytes(data)
        return body

    def lead(self, link, source):
        """Where a link of a source file leads on the site; None if it is to be plain text. Raises ValueError if it is dead."""
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link) or not path or source == LOOK / "course.md":
            return link
        target = (source.parent / unquote(path)).resolve()
        if not target.exists():
            raise ValueError(f"{source.relative_to(ROOT)} has a dead link: {link}")
        if target in self.known:
            return self.known[target] + (f"#{anchor}" if anchor else "")
        if target.suffix in PICTURES:
            (self.out / "figures").mkdir(exist_ok=True)
            return Path(shutil.copy(target, self.out / "figures")).relative_to(self.out).as_posix()
        place = target.relative_to(ROOT).as_posix()
        return f"https://github.com/{self.repository}/blob/main/{place}" if self.repository else None

    def finished(self, body, source):
        """A page's content: links lead to pages, headings have GitHub's anchors, what is wide scrolls by itself."""
        soup, taken = BeautifulSoup(body, "html.parser"), set()
        for heading in soup.find_all(re.compile("^h[1-6]$")):
            slug = name = re.sub(r"[^\w\- ]", "", heading.get_text().strip().lower()).replace(" ", "-")
            while name in taken:
                name = f"{slug}-{len(taken)}"
            taken.add(name)
            heading["id"] = name
        for picture in soup.find_all("img"):
            if picture["src"].startswith("http"):  # a badge: its words, since no page asks a network
                picture.replace_with(picture.get("alt", ""))
            elif not picture["src"].startswith("images/"):
                picture["src"] = self.lead(picture["src"], source)
        for link in soup.find_all("a", href=True):
            if where := self.lead(link["href"], source):
                link["href"] = where
            else:
                link.unwrap()
        for table in soup.find_all("table"):
            table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
        for brace in soup.find_all("munder", accentunder="true"):  # drawn by style.css: Chromium cuts a wide one off in places
            brace.contents[0]["class"] = "brace"
            brace.replace_with(brace.contents[0])
        self.characters.update(*(math.get_text() for math in soup.find_all("math")))
        return soup

    def write(self, name, title, main, inside=(), template="page.html.j2", **more):
        """A page, with the contents bar around it: `inside` are the (anchor, title) of its own parts."""
        order = [(page, self.titles[path]) for path, page in self.pages.items()]
        at = next((i for i, (page, _) in enumerate(order) if page == name), None)
        near = {} if at is None else {"before": order[at - 1] if at else None, "after": order[at + 1] if order[at + 1:] else None}
        named = {section: [(page, self.titles[path]) for path, page in pages.items()] for section, pages in self.sections.items()}
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.jinja.get_template(template).render(
            title=title, main=str(main), inside=inside, sections=named, here=name, top="../" * name.count("/"), **near, **more),
            encoding="utf-8")

    def page(self, source, name):
        """The page of a Markdown file or a notebook; of a lesson also its slides and both copies of the course."""
        if source.suffix == ".md":
            lessons = [(path.stem, self.titles[path]) for path in LESSONS]
            text = jinja2.Template(source.read_text()).render(lessons=lessons) if source.parent == LOOK else source.read_text()
            body = markdown(text)
        else:
            notebook = nbformat.read(source, as_version=4)
            body = self.notebook(notebook, source.stem)
        main = self.finished(body, source)
        inside = [(heading["id"], heading.get_text()) for heading in main.find_all("h2")]
        self.write(name, self.titles[source], main, inside)
        if source in LESSONS:
            for setup in main.find_all("details", class_="setup"):
                setup.decompose()
            self.write(f"slides-{name}", self.titles[source], main, template="slides.html.j2", lesson=name)
            self.course(notebook, source.name)

    def course(self, notebook, name):
        """course/teacher/ has a lesson as it is; course/student/ has it without what is folded below questions and without
        outputs."""
        student = deepcopy(notebook)
        for cell in student.cells:
            if cell.cell_type == "markdown":
                cell.source = ANSWERS.sub("", cell.source)
            else:
                cell.outputs, cell.execution_count = [], None
        student.cells = [cell for cell in student.cells if cell.source.strip()]
        for copy, cells in (("student", student), ("teacher", notebook)):
            (self.out / "course" / copy).mkdir(parents=True, exist_ok=True)
            nbformat.write(cells, self.out / "course" / copy / name)

    def api(self):
        """What pdoc says of each module, in this look; an index of them is part of each."""
        sys.path[:0] = [str(package.parent) for package in PACKAGES]
        names = [name for package in PACKAGES for name in (package.name, *(
            one.name for one in pkgutil.walk_packages([str(package)], f"{package.name}.")))]
        pdoc.render.configure(show_source=False)
        modules = {name: pdoc.doc.Module(importlib.import_module(name)) for name in names}
        for name, module in modules.items():
            page = BeautifulSoup(pdoc.render.html_module(module, modules), "html.parser")
            inside = [(one["id"], one["id"]) for one in page.main.find_all("section", id=True, recursive=False)]
            for heading in page.main.select("h6.heading, a.headerlink"):
                heading.decompose()
            self.write(f"api/{name.replace('.', '/')}.html", name, page.main, inside, template="api.html.j2", modules=list(modules))

    def font(self):
        """STIX Two Math, cut down to what the equations need, with its licence in its own tables."""
        options = subset.Options(flavor="woff", layout_features=["*"], name_IDs=["*"])
        font = TTFont(Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf")
        cut = subset.Subsetter(options)
        italics = [0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]  # what a browser makes of one letter in a formula
        cut.populate(text="".join(self.characters), unicodes=italics)
        cut.subset(font)
        subset.save_font(font, packed := io.BytesIO(), options)
        (self.out / "math.woff").write_bytes(packed.getvalue())

    def build(self):
        for path, name in self.pages.items():
            self.page(path, name)
        self.api()
        self.font()
        colours = [HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark")]
        (self.out / "style.css").write_text(self.jinja.get_template("style.css.j2").render(light=colours[0], dark=colours[1]))
        play = (ROOT / "figures" / "released" / "play.html").read_text()
        (self.out / "play.html").write_text(re.sub('id="home" href="[^"]*"', 'id="home" href="index.html"', play))
        (self.out / ".nojekyll").touch()


def title_of(path):
    """The first heading of a Markdown file or a notebook."""
    text = path.read_text() if path.suffix == ".md" else nbformat.read(path, as_version=4).cells[0].source
    return unescape(re.search("^# (.*)", text, re.MULTILINE)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="the folder to write, emptied first")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    Site(out).build()
    print(f"{len(list(out.rglob('*.html')))} pages in {out}: open {out / 'index.html'}")
