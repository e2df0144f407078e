"""The documentation site. From the root of the repository:

    python -m sphinx -W docs docs/_build                       in under two minutes, with the committed pictures of the demos
    python -m sphinx -W -D plot_gallery=1 docs docs/_build     the same, and runs every demo: a quarter of an hour
"""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT), str(ROOT / "demos")]

import catalogue  # noqa: E402
import demo_pages  # noqa: E402

project, author, copyright = "minibn", "the minibn authors", "the minibn authors"
release = version = metadata.version("minibn") if catalogue.module("minibn") else "0"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax", "myst_parser",
              "sphinx_copybutton", "sphinx_gallery.gen_gallery", "docstrings", "pages"]
exclude_patterns = ["_build", "_generated", "demos/*.md", "**/README.md"]
suppress_warnings = ["config.cache", "myst.xref_missing_anchor"]
nitpicky = False

# Markdown
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "source": "{{path}}"}
highlight_language = "none"

# Reference
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Looks
html_theme = "furo"
html_title = "minibn"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files, html_js_files = ["site.css"], ["enlarge.js"]
html_context = {"repository": "https://github.com/minibn/minibn"}
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = html_show_sourcelink = False
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True
pygments_style, pygments_dark_style = "friendly", "github-dark"

# Formulas are drawn by MathJax, which a package of the `docs` extra brings along: nothing comes from elsewhere.
mathjax_path = "tex-svg.js"
mathjax3_config = {"tex": {"tags": "none"}, "svg": {"fontCache": "global", "displayAlign": "left", "displayIndent": "1.5em"},
                   "options": {"enableMenu": False, "ignoreHtmlClass": "tex2jax_ignore|mathjax_ignore|document",
                               "processHtmlClass": "tex2jax_process|mathjax_process|math|output_area"}}
mathjax_options = {"async": "async"}


def mathjax_file():
    """Where the one file of MathJax is that the pages need."""
    files = metadata.files("sphinx-mathjax-offline") or []
    return next(file.locate() for file in files if str(file).endswith("static/mathjax/tex-svg.js"))


# Demos
executed = any("plot_gallery" in argument and argument[-1:] in "1e" for argument in sys.argv)
sphinx_gallery_conf = {
    "examples_dirs": "_generated", "gallery_dirs": "demos", "filename_pattern": r"/\d\d_",
    "ignore_pattern": r"(lab|torch_script)\.py",
    "within_subsection_order": "FileNameSortKey", "download_all_examples": False, "remove_config_comments": True,
    "plot_gallery": "False", "abort_on_example_error": True, "min_reported_time": 1e9, "write_computation_times": False,
    "reset_modules": ("matplotlib", lambda conf, name: sys.modules.pop("lab", None)), "show_memory": False,
    "show_signature": False, "default_thumb_file": str(HERE / "headline.png"), "inspect_global_variables": False,
}


def generate(app):
    """Before sphinx-gallery looks: the reference's pages and the demos' scripts."""
    catalogue.write(HERE / "reference")
    demo_pages.prepare(ROOT / "demos", HERE / "gallery", HERE / "_generated", executed)


def finish_notebooks(app):
    demo_pages.complete_notebooks(HERE / "demos", ROOT / "demos")


def setup(app):
    app.connect("builder-inited", generate, priority=100)
    app.connect("builder-inited", finish_notebooks, priority=900)
    app.connect("builder-inited", lambda app: app.config.html_static_path.append(str(mathjax_file())), priority=1)
