"""Pages for files of the repository that lie outside of docs, so that links to them lead somewhere in the site too.

`[config](../config/config.yaml)` works on a forge as it stands. In the site it leads to a page with the file: Markdown as text,
anything else highlighted, a folder as a list of its files.
"""

import os
import posixpath
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils import get_source_line
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge
from sphinx.transforms import SphinxTransform

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
FOLDER = "repository"
"""Of the site, with a page for each file that is linked."""

LEXERS = {"Snakefile": "python", ".smk": "python", "Makefile": "make", ".rst": "rst", ".lock": "text", ".sh": "bash"}
"""Where Pygments does not tell by the name, or does so with an error."""

Page = tuple[str, dict[str, Any], str]


class LeadToPages(SphinxTransform):
    """Makes links to files outside of docs lead to their pages."""

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        """Replace what MyST took for downloads, and what it could not find."""
        for node in (
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ):
            path, _, anchor = node.get("reftarget", "").partition("#")
            if node.get("refdomain") == "doc":  # MyST takes Markdown anywhere for pages of the site
                path, anchor = f"{path}.md", node.get("reftargetid") or ""
            elif node.get("refdomain"):
                continue
            # A page may include a file that lies elsewhere, whose links start from there.
            source, _ = get_source_line(node)
            written = Path(source) if source else DOCS / self.env.docname
            found = _in_repository(DOCS / self.env.docname, path) or _in_repository(written, path)
            if found is None:
                continue
            linked = self.env.__dict__.setdefault("repository_files", {})
            linked.setdefault(self.env.docname, set()).add(found)
            page = posixpath.relpath(f"{FOLDER}/{found}.html", posixpath.dirname(self.env.docname) or ".")
            link = nodes.reference("", "", internal=True, refuri=page + (f"#{anchor}" if anchor else ""))
            link += [child.deepcopy() for child in node.children]
            node.replace_self(link)


def _in_repository(page: Path, target: str) -> str | None:
    """The path in the repository that a relative link of a page leads to, if it leads out of docs."""
    if not target or ":" in target:
        return None
    path = Path(os.path.normpath(page.parent / target))
    if not path.exists() or path.is_relative_to(DOCS) or not path.is_relative_to(REPOSITORY):
        return None
    return path.relative_to(REPOSITORY).as_posix()


def pages(app: Sphinx) -> Iterator[Page]:
    """A page for each file or folder that a page of the site links, and for those that these link in turn."""
    linked: dict[str, set[str]] = getattr(app.env, "repository_files", {})
    waiting = sorted(set().union(*(linked[name] for name in linked if name in app.env.all_docs)))
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        path = REPOSITORY / name
        if path.is_dir():
            body, more = _listing(path)
        elif path.suffix == ".md":
            body, more = _markdown(path, app)
        else:
            body, more = _highlighted(path), []
        waiting += [other for other in more if other not in seen]
        seen.update(more)
        yield f"{FOLDER}/{name}", {"title": name, "body": body}, "page.html"


def _listing(folder: Path) -> tuple[str, list[str]]:
    hidden = (".", "__pycache__")
    held = [path for path in sorted(folder.iterdir()) if not path.name.startswith(hidden)]
    rows = "".join(
        f'<li><a href="{folder.name}/{path.name}.html">{escape(path.name)}{"/" if path.is_dir() else ""}</a></li>'
        for path in held
    )
    return f"<h1>{escape(_name(folder))}/</h1><ul>{rows}</ul>", [_name(path) for path in held]


def _highlighted(path: Path) -> str:
    lexer = LEXERS.get(path.name, LEXERS.get(path.suffix))
    if lexer is None:
        try:
            lexer = get_lexer_for_filename(path.name).aliases[0]
        except ClassNotFound:
            lexer = "text"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"<h1>{escape(_name(path))}</h1><p>A binary file of {path.stat().st_size:,} bytes.</p>"
    code = PygmentsBridge("html", "sphinx").highlight_block(text, lexer, force=True)
    return f"<h1>{escape(_name(path))}</h1>{code}"


def _markdown(path: Path, app: Sphinx) -> tuple[str, list[str]]:
    """Rendered, with links to pages of docs leading to their pages in the site."""
    reader = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=4)
    found, more = reader.parse(path.read_text(encoding="utf-8")), []
    here = posixpath.dirname(f"{FOLDER}/{_name(path)}")
    for token in (child for outer in found for child in (outer, *(outer.children or ()))):
        if token.type == "table_open":
            token.attrs["class"] = "table"
        key = {"link_open": "href", "image": "src"}.get(token.type)
        target, _, anchor = str(token.attrs.get(key or "", "")).partition("#")
        if not target or ":" in target:
            continue
        there = Path(os.path.normpath(path.parent / target))
        if not there.exists():
            raise ValueError(f"{_name(path)} links {target}, which is not there: correct the link")
        if key == "src":
            to = f"{FOLDER}/{_name(there)}"
            (Path(app.outdir) / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(there, Path(app.outdir) / to)
        elif there.is_relative_to(DOCS) and there.suffix == ".md":
            page = there.relative_to(DOCS).with_suffix("").as_posix()
            to = f"{page}.html"
            slugs = app.env.metadata[page].get("myst_slugs", {})
            anchor = slugs[anchor][1] if anchor in slugs else anchor  # what the heading is called in the site
        else:
            more.append(_name(there))
            to = f"{FOLDER}/{_name(there)}.html"
        token.attrs[key or ""] = posixpath.relpath(to, here) + (f"#{anchor}" if anchor else "")
    return reader.renderer.render(found, reader.options, {}), more


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _forget(app: Sphinx, env: Any, docname: str) -> None:
    getattr(env, "repository_files", {}).pop(docname, None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_transform(LeadToPages)
    app.connect("html-collect-pages", pages)
    app.connect("env-purge-doc", _forget)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
