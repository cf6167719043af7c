"""Flowcharts of Mermaid, drawn when the site is built."""

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class Flowchart(Directive):
    """A fenced block ``mermaid`` that holds a flowchart."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Its drawing."""
        return [nodes.literal_block("\n".join(self.content), "\n".join(self.content), language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("mermaid", Flowchart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
