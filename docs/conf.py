"""How Sphinx makes the site of docs/ (`make site`): no network, neither to build it nor to read it."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent / "srcpkg")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

project = "selfrepair"
author = "The selfrepair developers"
copyright = f"{author}, Apache License 2.0"
version = release = version_of("selfrepair")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "flowcharts",
    "mathml",
    "repository_files",
]
exclude_patterns = ["_build", "extensions", "static", "templates", "figures"]
templates_path = ["templates"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4
highlight_language = "sh"  # of blocks that name no language
suppress_warnings = ["misc.highlighting_failure"]  # those of commands may hold what they print, which is no shell

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_rtype = False
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_title = "selfrepair"
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["scrolling.js"]
html_sidebars = {"**": ["all-pages"]}
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for files on a disk
html_theme_options = {
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "article_header_start": [],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
    "search_bar_text": "Search",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = "$ "
