"""MediaWiki markup to plain prose: gensim removes the markup; sentences stay; headings, lists, tables and captions go."""

import re

from gensim.corpora.wikicorpus import filter_wiki

MIN_PARAGRAPH = 80
"""Characters below which a paragraph is taken for a remnant: a caption, a table's cell, a list's introduction."""

# gensim removes both without a trace: a measure is written out before, a paragraph with a formula is dropped after.
_MEASURE = re.compile(r"\{\{(?:convert|cvt)\|([^|{}]+)\|([^|{}]+)[^{}]*\}\}", re.I)
_FORMULA = re.compile(r"(?=<math\b)", re.I)
_FORMULA_MARK = "\0"

_QUOTES = re.compile(r"'{2,5}")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*$")
_NOT_PROSE = ("*", "#", ":", ";", "|", "!", "{", "}", "=", "+", "<")
_LEFT_OVER = (
    _FORMULA_MARK,
    "{{",
    "}}",
    "[[",
    "]]",
    "{|",
    "|}",
    "||",
    "colspan",
    "style=",
    "thumb|",
    "http",
    "</",
    "/>",
)
_BACK_MATTER = re.compile(
    r"=+\s*(?:see also|references?|external links|further reading|notes.*|footnotes|citations|bibliography|sources.*)\s*=+",
    re.I,
)
_HEADING = re.compile(r"(=+)[^=].*?\1")


def plain_text(markup: str) -> str:
    """The prose of a page: paragraphs divided by an empty line, without headings; empty if the page has none.

    Args:
        markup: MediaWiki markup of one page.
    """
    marked = _FORMULA.sub(_FORMULA_MARK, _MEASURE.sub(r"\1 \2", markup))
    paragraphs = []
    skipped_level = 0
    for line in filter_wiki(marked).splitlines():
        line = line.strip()
        if heading := _HEADING.fullmatch(line):
            level = len(heading[1])
            if not skipped_level or level <= skipped_level:
                skipped_level = level if _BACK_MATTER.fullmatch(line) else 0
        elif not skipped_level and not line.startswith(_NOT_PROSE):
            paragraphs.append(_tidy(line))
    return "\n\n".join(paragraph for paragraph in paragraphs if _is_prose(paragraph))


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < MIN_PARAGRAPH or not _SENTENCE_END.search(paragraph):
        return False
    return not any(mark in paragraph for mark in _LEFT_OVER)


def _tidy(line: str) -> str:
    """Close the gaps that removed markup leaves: emphasis, empty brackets, doubled blanks and stray punctuation."""
    line = _QUOTES.sub("", line).replace("\u00a0", " ")
    line = re.sub(r"([(\[])(?:\s*[,;:–—/])*\s*", r"\1", line)
    line = re.sub(r"(?:\s*[,;:])+\s*([)\]])", r"\1", line)
    line = re.sub(r"\s*(?:\(\s*(?:or|and)?\s*\)|\[\s*\])", "", line)
    line = re.sub(r"\s+([,.;:!?](?=\s|$)|[)\]])", r"\1", line)
    return re.sub(r"\s{2,}", " ", line).strip()
