"""The documentation site: it builds without a warning, holds every public name, and works in a browser and in notebooks.

A site that is in docs/_build and newer than all its sources is used as it is; `.ci/run` makes one
before the tests.
"""

import fcntl
import http.server
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

import minibn

ROOT = Path(__file__).parent.parent
DOCS, BUILT = ROOT / "docs", ROOT / "docs" / "_build"
INSTALL = "install it with: pip install -e '.[test,docs]'"
for needed in ("sphinx", "furo", "myst_parser", "sphinx_gallery", "sphinx_copybutton"):
    pytest.importorskip(needed, reason=f"the site needs {needed}; {INSTALL}")
sys.path.insert(0, str(DOCS / "_ext"))

import catalogue  # noqa: E402
import docstrings  # noqa: E402
import formulas  # noqa: E402

SOURCES = [*(page for page in DOCS.rglob("*") if page.suffix in (".md", ".py", ".css", ".json") and "_build" not in page.parts
             and not {"demos", "reference", "_generated"} & set(page.relative_to(DOCS).parts)),
           *(ROOT / "minibn").rglob("*.py"), *(ROOT / "demos").glob("*.py")]
NOTEBOOKS = ["01_scale_invariance", "06_cosine"]


@pytest.fixture(scope="module")
def site():
    """The folder of the built site."""
    stamp = BUILT / "objects.inv"
    with open(DOCS / ".site.lock", "w") as lock:  # several processes of a test run may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(stamp)
    return BUILT


def build(stamp):
    if not stamp.exists() or stamp.stat().st_mtime < max(file.stat().st_mtime for file in SOURCES):
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", str(DOCS), str(BUILT)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-3000:]
        os.utime(stamp)


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, file):
        super().__init__()
        self.links, self.anchors, self.pictures = [], set(), []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "img":
            self.pictures.append(values["src"])


def test_no_link_is_dead(site):
    """Every link within the site leads to a page that is there, and to an anchor that it has."""
    pages = {file: Page(file) for file in site.rglob("*.html")}
    dead = []
    for file, page in pages.items():
        for link in [*page.links, *page.pictures]:
            address, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", address):
                continue
            target = (file.parent / address.partition("?")[0]).resolve() if address else file
            if not target.exists() or anchor and target in pages and anchor not in pages[target].anchors:
                dead.append(f"{file.relative_to(site)}: {link}")
    assert len(pages) > 60
    assert not dead, dead[:20]


def test_every_public_name_is_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    names = {name for kind, entries in inventory.data.items() if kind.startswith("py:") for name in entries}
    for (module, name), value in catalogue.documented().items():
        assert f"{module}.{name}" in names, f"{module}.{name} of {value} has no entry"
    listed = {name for group in catalogue.GROUPS.values() for name in group} | catalogue.INTERNAL | catalogue.MOVED
    for module in pkgutil.iter_modules(minibn.__path__, "minibn."):
        assert any(name == module.name or name.startswith(f"{module.name}.") for name in listed), f"{module.name}: public or not?"
    for name in minibn.__all__:
        value = getattr(minibn, name)
        home = value.__name__ if inspect.ismodule(value) else None
        assert home in names or name == "__version__" or any(known.endswith(f".{name}") for known in names), name


@pytest.mark.parametrize(("plain", "latex"), [
    ("w̃' = w̃ - (η / P') u", r"\tilde{w}^{\prime} = \tilde{w} - \frac{\eta}{P^{\prime}} u"),
    ("η̃_t = α^(-2t-1) η", r"\tilde{\eta}_{t} = \alpha^{- 2 t - 1} \eta"),
    ("κ_{t+1} = drag / α", r"\kappa_{t + 1} = \frac{\text{drag}}{\alpha}"),
    ("x = 1 / a / b", r"x = \frac{\frac{1}{a}}{b}"),
    ("x = a / b c", "x = a / b c"),  # a / (b c) or (a / b) c: left as it is written
    ("x = f(a / b)", r"x = f\left(\frac{a}{b}\right)"),
    ("<∇L(w), w> = 0", r"\langle \nabla L(w) ,\  w \rangle = 0"),
    ("|w|² < √(a + b)", r"\lvert w \rvert^{2} < \sqrt{a + b}"),
    ("L(c w) = L(w)        for every c > 0", r"L(c w) = L(w) \qquad \text{for every}\ c > 0"),
    ("a <- running_mean", r"a \leftarrow \text{running_mean}"),  # \text shows a backslash before _
    ("dW = xᵀ dy", r"\mathrm{d}W = x^{\mathsf{T}} \mathrm{d}y"),
])
def test_a_formula_in_plain_characters_becomes_latex(plain, latex):
    assert formulas.is_formula(plain)
    assert formulas.latex(plain) == latex


@pytest.mark.parametrize("text", ["minibn train --lr 0.1", "lr/NAME        η of the step", ">>> x = 1", "| a | b |",
                                  "net = nn.Sequential(x)", "minibn.json      the facts",
                                  "MINIBN_PLAIN=1 python -m pdb script.py"])
def test_commands_code_and_tables_are_not_formulas(text):
    assert not formulas.is_formula(text)


def test_columns_that_are_too_wide_for_a_page_get_lines_of_their_own():
    wide = "   ".join(f"{name} = " + " + ".join(f"{name}_{i}" for i in range(8)) for name in "abc")
    assert formulas.latex(wide).count(r"\\") == 2
    assert "&&" in formulas.latex("a = b   c = d\ne = f   g = h")
    assert "&&" not in formulas.latex(f"{wide[:51]}   c = d\ne = f   {wide[:51]}")


def test_a_name_is_documented_under_its_own_module():
    assert ("minibn.export", "write_csv") in catalogue.documented()
    assert ("minibn.schedules", "write_csv") not in catalogue.documented()
    page = catalogue.page("minibn.pytorch", importlib.import_module("minibn.pytorch"))
    assert page.index("pytorch.remove_weight_decay") < page.index("pytorch.add_weight_decay") < page.index("pytorch.Conversion")


def test_code_in_a_docstring_stays_one_block_and_a_long_formula_gets_a_line():
    code = docstrings.to_rest(["    import torch", "", "    x = torch.ones(2)"], "minibn")
    assert sum(line.startswith(".. code-block:: python") for line in code) == 1
    formula = docstrings.to_rest(["`dx = (dx̂ - Σ dx̂ / M - x̂ Σ dx̂ x̂ / M) / √(σ² + ε)`, with γ."], "minibn")
    assert ".. math::" in formula
    assert "with γ." in formula[-1]
    assert docstrings.inline("See docs/tutorial.md.", "minibn") == "See :doc:`/tutorial`."


def test_a_module_whose_library_is_missing_has_a_page_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "modules", lambda: {"minibn.export": importlib.import_module("minibn.export")})
    monkeypatch.setattr(catalogue, "page", lambda name, module: name)
    catalogue.write(tmp_path)
    assert catalogue.MISSING in (tmp_path / "minibn.pytorch.rst").read_text(encoding="utf-8")
    assert (tmp_path / "minibn.export.rst").read_text(encoding="utf-8") == "minibn.export"
    assert "   minibn.pytorch\n" in (tmp_path / "index.rst").read_text(encoding="utf-8")


def test_docstrings_become_rest_with_links_formulas_and_tables():
    text = ["Uses `fixed_point` for `α² + 1`, see *there*.", "", "    κ' = drag / α", "", "    | a | b |", "    | c | d |", "",
            "Args:", "    lr: η_t of `Step`; x|y.", "Example:", "    >>> 1 + 1", "    2"]
    rest = "\n".join(docstrings.to_rest(text, "minibn.equivalence"))
    assert ":py:obj:`fixed_point <minibn.equivalence.fixed_point>` for :math:`\\alpha^{2} + 1`\\ , see *there*" in rest
    assert ".. math::\n\n   \\kappa^{\\prime} = \\frac{\\text{drag}}{\\alpha}" in rest
    assert ".. list-table::" in rest
    assert "    lr: :math:`\\eta_{t}` of :py:obj:`Step <minibn.optim.Step>`\\ ; x\\|y." in rest
    assert rest.endswith(">>> 1 + 1\n2\n")


def test_quotation_of_plain_blocks_is_complete():
    """Every indented block of every docstring with a relation in it is read as a formula with balanced braces."""
    blocks = 0
    for name in ("minibn.equivalence.streams", "minibn.equivalence.adam", "minibn.nn.norm", "minibn.optim.adamw"):
        module = importlib.import_module(name)
        for thing in (module, *(value for value in vars(module).values() if inspect.isclass(value))):
            for block in re.findall(r"(?m)(?:^    \S.*=.*\n?)+", inspect.getdoc(thing) or ""):
                if formulas.is_formula(block):
                    latex = formulas.latex(block)
                    assert latex.count("{") == latex.count("}")
                    assert not re.search(r"[α-ωΑ-Ω\u0303√²]", latex)
                    blocks += 1
    assert blocks > 10


@pytest.fixture(scope="module")
def address(site):
    """The site on an address of this machine."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(site))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason=f"a browser is driven by playwright; {INSTALL}")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("there is no Chromium on this machine; install it with: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


def test_every_page_works_in_a_browser(site, address, browser):
    """On a screen of 400 pixels: no error, nothing from elsewhere, every formula drawn, nothing wider than the screen."""
    context = browser.new_context(viewport={"width": 400, "height": 800})
    page, faults, drawn = context.new_page(), [], 0
    page.on("console", lambda message: message.type == "error" and faults.append((page.url, message.text)))
    page.on("pageerror", lambda error: faults.append((page.url, str(error))))
    page.on("request", lambda request: request.url.startswith((address, "data:")) or faults.append((page.url, request.url)))
    for file in sorted(site.rglob("*.html")):
        if "_modules" in file.parts or "_static" in file.parts:
            continue
        page.goto(f"{address}/{file.relative_to(site)}")
        if "MathJax" in file.read_text(encoding="utf-8"):
            page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            page.evaluate("MathJax.startup.promise")
        found = page.evaluate("""() => ({
            wide: document.documentElement.scrollWidth, errors: document.querySelectorAll("[data-mjx-error]").length,
            undrawn: [...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container")).length,
            drawn: document.querySelectorAll("mjx-container").length, blocks: document.querySelectorAll("div.math").length,
            broken: [...document.images].filter(i => i.complete && !i.naturalWidth && i.loading != "lazy").length})""")
        drawn += found["drawn"]
        faults += [(page.url, what, found[what]) for what in ("errors", "undrawn", "broken") if found[what]]
        if found["wide"] > 400:
            faults.append((page.url, "wider than the screen", found["wide"]))
        if found["blocks"]:
            page.set_viewport_size({"width": 1200, "height": 800})
            cut = page.evaluate("""[...document.querySelectorAll("div.math")].filter(
                e => e.scrollWidth > e.clientWidth + 2).length""")
            faults += [(page.url, "formulas that do not fit a page of 1200 pixels", cut)] if cut else []
            page.set_viewport_size({"width": 400, "height": 800})
    context.close()
    assert not faults, faults[:10]
    assert drawn > 200


def test_search_and_links_work_in_a_browser(address, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{address}/search.html?q=remove_weight_decay")
    page.wait_for_selector("#search-results li a")
    assert "remove_weight_decay" in page.inner_text("#search-results")
    page.goto(address)
    page.click("article >> text=with AdamW")
    assert page.inner_text("h1").startswith("PyTorch: convert a script with AdamW")
    page.click("text=why >> nth=0")
    assert page.url.endswith("explanation/optimizers.html#any-optimiser-with-decoupled-decay")
    page.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_from_the_gallery_runs_from_top_to_bottom(name, site, tmp_path, monkeypatch):
    """In an empty folder, in small, with its picture, its verdict and a progress bar that has come to its end."""
    nbclient = pytest.importorskip("nbclient", reason=f"notebooks are run by nbclient; {INSTALL}")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason=f"notebooks need ipykernel; {INSTALL}")
    notebook = nbformat.read(next((site / "_downloads").rglob(f"{name}.ipynb")), as_version=4)
    monkeypatch.setenv("MINIBN_QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "verdict:  holds" in text
    assert json.loads((tmp_path / "results" / "demos" / f"{name}.json").read_text())["claims"]
    if name == "06_cosine":  # trains, so it has bars
        last = [re.split(r"\r", line)[-1] for line in text.split("\n") if re.search(r"\d+/\d+ \[", line)]
        done = [re.search(r"(\d+)/(\d+) \[", line).groups() for line in last]
        assert done
        assert all(count == total for count, total in done)
