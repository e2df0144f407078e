"""The demos for sphinx-gallery, which wants a title with a line below it and the text of a cell under its `# %%`.

A page shows the committed picture and the claims with what was measured, those of `python -m demos --gallery`; a build that runs
the demos shows what it has just drawn instead. A notebook gets the files that the demo imports from its own folder written by
its first cell, so that it runs wherever it is opened.
"""

import json
import re
import shutil

import docstrings

HELPERS = ("lab", "torch_script", "gpt_torch_script")


def prepare(demos, pictures, folder, executed):
    """Write the scripts for sphinx-gallery into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    scripts = sorted(demos.glob("[0-9]*.py"))
    for old in folder.glob("[0-9]*.py"):
        if not (demos / old.name).exists():
            old.unlink()
    for script in scripts:
        text = script_for_gallery(script, pictures, executed)
        target = folder / script.name
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
    for helper in HELPERS:
        shutil.copy(demos / f"{helper}.py", folder / f"{helper}.py")
    (folder / "GALLERY_HEADER.rst").write_text(HEADER, encoding="utf-8")


HEADER = """Demos
=====

There is one script for each claim of the paper, and for each claim that this library adds. Each page has the text, the code,
the picture and what was measured. At its end are the script and a notebook to download. The notebook needs ``minibn`` and
nothing else.

The demos import ``lab``, a file of their own folder that draws pictures and keeps claims; a notebook writes it by itself.

``python -m demos`` runs all of them in about a quarter of an hour on two cores. ``python -m demos toy texp`` runs those whose
names contain one of the words, and ``--quick`` runs small versions.

"""


def script_for_gallery(script, pictures, executed):
    """The text of a demo with a header and cells as sphinx-gallery reads them."""
    _, docstring, code = re.match(r'(r?"""(.*?)""")', text := script.read_text(encoding="utf-8"), re.DOTALL).group(0, 2, 0)
    code = text[len(code):]
    title, _, rest = docstring.strip().partition("\n")
    title = title.strip().rstrip(".")
    header = [title, "=" * len(title), "", *docstrings.to_rest(rest.strip().splitlines(), "minibn")]
    if not executed:
        header += results(script.stem, title, pictures)
    if (pictures / f"{script.stem}.png").exists():  # for the index, where the demo is not run
        header_comment = f"# sphinx_gallery_thumbnail_path = 'gallery/{script.stem}.png'\n"
    else:
        header_comment = ""
    code = re.sub(r"^# %% (\S.*)$", lambda match: f"# %%\n# {docstrings.inline(match[1], 'minibn')}", code, flags=re.M)
    body = "\n".join(header)
    return f'r"""\n{body}\n"""\n{code.lstrip()}' + ("\n" + header_comment if header_comment else "")


def results(name, title, pictures):
    """The picture and the claims, if they are there."""
    rest, facts = [], pictures / "claims.json"
    if (pictures / f"{name}.png").exists():
        rest += ["", f".. image:: /gallery/{name}.png", f"   :alt: {title}", "   :class: demo", ""]
    claims = json.loads(facts.read_text(encoding="utf-8")).get(name) if facts.exists() else None
    if claims:
        rest += ["", "**Measured**", ""]
        for claim in claims["claims"]:
            words = docstrings.inline(claim["claim"][0].upper() + claim["claim"][1:], "minibn")
            rest += [f"- {words}: *{docstrings.escaped(claim['measured']).replace('*', chr(92) + '*')}*."]
    return [*rest, ""]


def complete_notebooks(folder, demos):
    """Let each notebook in `folder` begin with the files that its code imports from the demos' folder."""
    for file in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        source = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
        if "%%writefile" in source:
            continue
        cells = [{"cell_type": "markdown", "metadata": {}, "source": [
            "This notebook needs `minibn`: `pip install minibn`. The next cell writes a file that the demos share."]}]
        for helper in HELPERS:
            if re.search(rf"^import {helper}\b", source, re.M):
                text = (demos / f"{helper}.py").read_text(encoding="utf-8")
                cells.append({"cell_type": "code", "metadata": {"jupyter": {"source_hidden": True}}, "execution_count": None,
                              "outputs": [], "source": [f"%%writefile {helper}.py\n{text}"]})
        notebook["cells"] = [notebook["cells"][0], *cells, *notebook["cells"][1:]]
        file.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
