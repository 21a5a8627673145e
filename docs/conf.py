"""How Sphinx makes the site of these documents: ``make docs``.

The pages are the Markdown files as they are read elsewhere, and ``api/``, whose text comes from the docstrings. Nothing
that is built asks a network for anything: formulas are MathML, the search is a file beside the pages, fonts are the
system's.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

from _site import formulas, listings, navigation, outside, references

import potstill

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Potstill"
version = release = potstill.__version__
copyright = "the Potstill developers"
language = "en_GB"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_site"]
root_doc = "index"
nitpicky = True  # a name in a docstring that leads nowhere is a warning, and `make docs` takes warnings for errors
nitpick_ignore_regex = references.FOREIGN
suppress_warnings = ["myst.xref_ambiguous"]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
viewcode_follow_imported_members = False
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"Potstill {version}"
html_math_renderer = "mathml"
html_static_path = ["_site/static"]
html_css_files = ["potstill.css"]
templates_path = ["_site/templates"]
html_sidebars = {"**": ["pages"]}
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # a page that is opened from disk may not fetch another one
html_theme_options = {
    "navbar_start": ["navbar-logo"],
    "navbar_center": [],
    "navbar_persistent": ["search-button"],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "article_header_start": [],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def setup(app: "Sphinx") -> dict[str, Any]:
    """Add what Sphinx does not bring along."""
    formulas.setup(app)
    outside.setup(app)
    references.setup(app)
    listings.setup(app)
    navigation.setup(app)
    return {"parallel_read_safe": True}
