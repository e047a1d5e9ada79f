"""The documentation as a site: uv run sphinx-build -W --keep-going -b html docs build/site."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from lt_cb import __version__

project = "lt_cb"
author = "The lt_cb authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"
html_extra_path = ["report.html"]
html_static_path = ["static"]
html_css_files = ["math.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]  # GitHub shows such formulas too
myst_heading_anchors = 4  # by GitHub's rule, so that a link with an anchor leads to the same place there and here
nitpicky = True
default_role = "any"
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchmetrics|lightning|numpy|np|collections|typing|pathlib|threading)\..*"),
    ("py:class", "Tensor|Trainer|Cluster"),  # imported for type checkers alone
    ("py:class", ".*Annotated.*"),  # the types of a record
]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

PAGES = {  # links to files, and the pages that show them
    "../CHANGELOG.md": "changelog.rst",
    "../CONTRIBUTING.md": "contributing.rst",
    "../benchmarks/RESULTS.md": "speed.rst",
    "../benchmarks/RESULTS_large.md": "speed_large.rst",
    "../examples": "examples.rst",
}


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Redirect links to included files to their pages, and make a table of contents of each section of the index."""
    source[0] = re.sub(r"(?<=\]\()[^)#]+(?=[)#])", lambda link: PAGES.get(link[0], link[0]), source[0])
    if page == "index":
        parts = re.split(r"^## (.*)\n", source[0], flags=re.MULTILINE)
        for caption, text in zip(parts[1::2], parts[2::2], strict=True):
            pages = "\n".join(re.findall(r"\]\(([\w/]+)\.(?:md|rst)\)", text))
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def read_tree(app: Sphinx, tree: nodes.document) -> None:
    """Put all sections of a page below its first title; make report.html a link instead of a download."""
    titles = [part for part in tree.children if isinstance(part, nodes.section)]
    for part in titles[1:]:
        tree.remove(part)
        titles[0].append(part)
    for link in list(tree.findall(download_reference)):
        if link["reftarget"] == "report.html":
            link.replace_self(nodes.reference("", "", *link.children, refuri="report.html"))


def is_skipped(app: Sphinx, kind: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Skip the automatic docstrings of NamedTuple fields; the docstring of the class describes the fields."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def signature(
    app: Sphinx, kind: str, name: str, value: object, options: object, args: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace the default factory of a dataclass field by dots, which Sphinx can parse."""
    return args and args.replace("<factory>", "..."), returns


def visit_math(writer: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    gap = '<mspace width="0.17em"/>'  # between log and x, but not before a bracket, as in TeX
    writer.body.append(re.sub(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>\()", gap, formula))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the functions of this file."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("source-read", read_source)
    app.connect("autodoc-skip-member", is_skipped)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", read_tree, priority=100)  # before titles and downloads are gathered
