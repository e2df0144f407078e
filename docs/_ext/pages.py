"""What a page in Markdown is given on its way to HTML: drawn formulas, and links that lead to the code within the site."""

import os
import re
from pathlib import Path

import catalogue
import formulas
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parent.parent.parent


class Formulas(SphinxTransform):
    """Indented formulas, and formulas in backticks, become mathematics."""

    default_priority = 450

    def apply(self, **_):
        if not str(self.env.doc2path(self.env.docname)).endswith(".md"):
            return
        for block in list(self.document.findall(nodes.literal_block)):
            if block.get("language", "none") in ("none", "default", "text") and formulas.is_formula(block.astext()):
                formula = nodes.math_block(text=formulas.latex(block.astext()), docname=self.env.docname, number=None, label=None)
                formula["nowrap"] = formula["no-wrap"] = False
                block.replace_self(formula)
        for literal in list(self.document.findall(nodes.literal)):
            if formulas.is_inline_formula(literal.astext()):
                literal.replace_self(nodes.math(text=formulas.inline(literal.astext())))
            elif (full := catalogue.resolve(literal.astext(), "minibn")) and not isinstance(literal.parent, nodes.reference):
                link = addnodes.pending_xref("", nodes.literal(text=literal.astext(), classes=["xref", "py"]), refdomain="py",
                                             reftype="obj", reftarget=full, refexplicit=True, refdoc=self.env.docname)
                literal.replace_self(link)


def source_links(app, docname, source):
    """A link to a file of the package leads to that file's page on the site; to any other file, to the project's repository."""
    folder = Path(app.env.doc2path(docname)).parent

    def target(match):
        link, hash_, anchor = match[2].partition("#")
        path = Path(os.path.normpath(folder / link))
        if path.is_relative_to(app.srcdir) and not path.is_dir() or not path.exists():
            return match[0]
        relative = path.relative_to(ROOT)
        if relative.parts[0] == "demos" and relative.name[0].isdigit():
            return f"{match[1]}(/demos/{relative.stem}.rst)"
        if relative.parts[0] == "minibn" and module_of(relative) in viewable():
            file = "../" * docname.count("/") + "_modules/" + module_of(relative).replace(".", "/")
            return f"{match[1]}(<source:{file}.html>)"
        kind = "tree" if path.is_dir() else "blob"
        return f"{match[1]}({app.config.html_context['repository']}/{kind}/main/{relative}{hash_}{anchor})"

    source[0] = re.sub(r"(\]) ?\((?!https?://|#|<)([^)\s]+)\)", target, source[0])


def module_of(relative):
    """The name of the module that a path from the root is, a package's for a folder."""
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def viewable():
    """The modules whose source the site has: those that define a public name."""
    return {value.__module__ for value in catalogue.documented().values() if hasattr(value, "__module__")}


def setup(app):
    app.add_transform(Formulas)
    app.connect("source-read", source_links)
    return {"parallel_read_safe": True}
