"""What README and docs say is so: their examples run, their commands are understood, the lines they quote are in the code."""

import doctest
import re
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from minibn.__main__ import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
GENERATED = {"_build", "_generated", "demos", "reference"}  # folders that building the site makes
PAGES = [README, *sorted(page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in GENERATED)]
OPTIONAL = {"jax", "keras", "optax", "torch"}  # not among the test extra


def blocks(page, language="python"):
    """[(number of the line before it, text)] of the page's code blocks."""
    text = page.read_text(encoding="utf-8")
    return [(text[: match.start()].count("\n") + 1, match[1])
            for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def imported(code):
    """Which of `OPTIONAL` a block imports."""
    return sorted(OPTIONAL & set(re.findall(r"^ *(?:>>> |\.\.\. )?(?:import|from) (\w+)", code, re.MULTILINE)))


def run(page, line, code, scope):
    """Run a block, a doctest if it has prompts; errors show the page's own line."""
    if ">>> " in code:
        examples = doctest.DocTestParser().get_doctest(code, scope, page.name, str(page), line)
        report = []
        doctest.DocTestRunner().run(examples, out=report.append, clear_globs=False)
        assert not report, "".join(report)
        scope.update(examples.globs)
    else:
        exec(compile("\n" * line + code, page, "exec"), scope)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_examples_of_a_page_run(page):
    """In order, each with what those before it left."""
    scope = {}
    for line, code in blocks(page):
        if not imported(code):
            run(page, line, code, scope)
    if page == README:
        assert scope["history"]["loss"][-20:].mean() < 0.4
        assert any(name.startswith("conv1.weight") for name in scope["conversion"].names)


WITH_OTHERS = [(page, line, code) for page in PAGES for line, code in blocks(page) if imported(code)]


@pytest.mark.parametrize(("page", "line", "code"), WITH_OTHERS, ids=[f"{name(page)}:{line}" for page, line, _ in WITH_OTHERS])
def test_examples_with_other_libraries_run(page, line, code, monkeypatch):
    """Each alone, where the library is installed."""
    monkeypatch.setenv("KERAS_BACKEND", "jax" if find_spec("jax") else "torch")
    for library in imported(code):
        pytest.importorskip(library)
    run(page, line, code, {})


def test_every_quoted_line_is_in_the_file_it_is_quoted_from():
    """A quote is a block ```py after a paragraph whose last line links to the file."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        quotes = re.findall(r"\]\((?:\.\./)+(minibn/[\w/]+\.py)\)[^\n\]]*\n\n```py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert len(quotes) == len(blocks(page, "py")), f"{page.name}: a quote without a file"
        for file, quote in quotes:
            lines = {line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()}
            assert set(quote.splitlines()) <= lines, f"{page.name}: {file} has no line {set(quote.splitlines()) - lines}"
        assert page.name != "derivation.md" or len(quotes) >= 10


def test_links_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if target.parent == DOCS / "reference":  # a page for each public module, made when the site is built
                assert find_spec(target.stem), f"{page.name}: {link}"
                continue
            if target.parent == DOCS / "demos":
                assert target.stem == "index" or (ROOT / "demos" / f"{target.stem}.py").exists(), f"{page.name}: {link}"
                continue
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, link


def test_the_minibn_commands_are_understood(capsys):
    output = ""
    commands = [command for page in PAGES for command in re.findall(r"^    minibn (.*)$", page.read_text(encoding="utf-8"), re.M)]
    assert len(commands) >= 4
    for command in dict.fromkeys(commands):
        if "--path" in command:  # images that are not here, or too many to train on
            with pytest.raises(SystemExit):
                main(command.replace("/usr/share/datasets/fashion-mnist", "no/such").split())
            assert re.search("minibn: no (CIFAR-10|Fashion-MNIST) at [^ ]+: it does not exist", capsys.readouterr().err)
        else:
            assert main(command.split()) == 0
            output += capsys.readouterr().out
    assert "independent rescaling symmetries" in output
    assert "12 runs, 0 failed" in output
