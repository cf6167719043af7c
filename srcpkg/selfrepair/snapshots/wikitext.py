"""MediaWiki markup to plain prose: sentences stay; tables, lists, captions, references and formulae go."""

import html
import re
from collections.abc import Callable

MIN_PARAGRAPH = 60
"""Characters below which a paragraph is taken for a remnant (a caption, a list's introduction)."""

_FORMULA = "\0"
_HOLE = "\1"
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_REFERENCE = re.compile(
    r"<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>|<references\b.*?(?:/>|</references\s*>)", re.S | re.I
)
_BLOCK = re.compile(
    r"<(gallery|timeline|source|syntaxhighlight|pre|imagemap|poem|table|ol|ul|score|hiero)\b[^<>]*>.*?</\1\s*>",
    re.S | re.I,
)
_MATH = re.compile(r"<(math|chem|ce)\b[^<>]*>.*?</\1\s*>", re.S | re.I)
_BREAK = re.compile(r"<(?:br|hr)\s*/?>", re.I)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"^[ \t:*]*\{\|(?:(?!^[ \t:*]*\{\||^[ \t]*\|\}).)*^[ \t]*\|\}", re.S | re.M)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_URL_LINK = re.compile(r"\[(?:[a-z]{3,6}:)?//[^\s\[\]]+\s*([^\[\]]*)\]", re.I)
_URL = re.compile(r"(?:https?|ftp)://\S+")
_QUOTES = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^(=+)\s*(.*?)\s*=+\s*$")
_SWITCH = re.compile(r"__[A-Z]+__")
_NOT_PROSE = ("*", "#", ":", ";", "|", "!", "{", "}", "=", "<")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*$")
_BACK_MATTER = re.compile(
    r"(?:see also|references?|external links|further reading|notes.*|footnotes|citations|bibliography|sources.*|"
    r"works cited|filmography|discography|gallery|publications|selected works)",
    re.I,
)
_DROPPED_LINK = re.compile(r"(?:file|image|category|media|[a-z]{2,3}|be-x-old|zh-[a-z-]+)\s*:", re.I)

# Templates that stand at the end of what they annotate: nothing is missing from the sentence without them.
_SILENT = re.compile(
    r"(?:cite|citation|vcite|harv|sfn|efn|refn|r$|rp$|note|cn$|fact$|ref|dead link|wayback|webarchive|anchor|isbn|"
    r"inflation-fn|when|who|which|where|why|by whom|how|quantify|vague|dubious|disputed|clarify|specify|better source|"
    r"failed|verif|original|or$|pov|lopsided|update|#tag|clear|page number|pp$|nb$|hidden|toc|use |portal|see also|"
    r"main|further|infobox|coord|dn$|disambiguation|ambiguous|synthesis|unreliable|contradict).*|.* needed|.*\?",
    re.I,
)
_SHOWN_LAST = {"lang", "langx", "transl", "transliteration", "linktext"}
_SHOWN_FIRST = {
    "nowrap", "small", "smaller", "nobold", "vanchor", "visible anchor", "sub", "sup", "nihongo", "flag", "flagcountry",
    "angbr", "keypress", "abbr", "tooltip", "quote", "blockquote", "cquote", "quotation", "val", "nts", "em", "strong",
    "mono", "var", "sic", "not a typo", "as written", "script", "unicode",
}  # fmt: skip
_WRITTEN = {
    "ndash": "–", "mdash": "—", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "snds": " – ", "nbsp": " ",
    "'": "'", "'s": "'s", '"': '"', "okina": "ʻ", "!": "|", "=": "=", "pi": "π", "sigma": "σ", "deg": "°",
    "degree": "°", "circa": "c. ", "c.": "c. ", "ca.": "c. ", "bullet": "•", "·": "·",
}  # fmt: skip
_UNITS = {
    "sqmi": "square miles", "mi2": "square miles", "sqkm": "km²", "km2": "km²", "m2": "m²", "sqft": "square feet",
    "cuft": "cubic feet", "cumi": "cubic miles", "km3": "km³", "m3": "m³", "C": "°C", "F": "°F", "C-change": "°C",
    "F-change": "°F", "mi": "miles", "mile": "miles", "ft": "feet", "foot": "feet", "in": "inches", "yd": "yards",
    "lb": "pounds", "lbs": "pounds", "oz": "ounces", "acre": "acres", "mph": "miles per hour", "nmi": "nautical miles",
    "long ton": "long tons", "short ton": "short tons", "usgal": "US gallons", "impgal": "imperial gallons",
}  # fmt: skip


def plain_text(markup: str) -> str:
    """The prose of a page: paragraphs divided by an empty line, without headings; empty if the page has none.

    Args:
        markup: MediaWiki markup of one page.
    """
    text = re.sub(f"[{_FORMULA}{_HOLE}]", "", _COMMENT.sub("", markup))
    text = _REFERENCE.sub("", text)
    text = _BLOCK.sub("\n", text)
    text = _MATH.sub(_FORMULA, text)
    text = _innermost(_TEMPLATE, _template, text)
    text = _innermost(_TABLE, lambda _: "\n", text)
    text = _URL_LINK.sub(r"\1", text)
    text = _innermost(_LINK, _link, text)
    text = _TAG.sub("", _BREAK.sub(" ", text))
    text = _QUOTES.sub(lambda match: "" if len(match[0]) != 4 else "'", text)
    text = html.unescape(html.unescape(_SWITCH.sub("", text)))
    return "\n\n".join(_paragraphs(_TAG.sub("", text)))


def _innermost(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace innermost matches until none is left: markup nests."""
    count = 1
    while count:
        text, count = pattern.subn(replace, text)
    return text


def _template(match: re.Match[str]) -> str:
    """What a template shows, for the few that stand inside sentences; the others show nothing here."""
    name, *arguments = (part.strip() for part in match[1].split("|"))
    name = name.lower().replace("_", " ")
    shown = [argument for argument in arguments if not re.match(r"[\w -]+=", argument)]
    named = dict(argument.split("=", 1) for argument in arguments if re.match(r"[\w -]+=", argument))
    if name in ("convert", "cvt"):
        return _measure(shown)
    if name in ("chem", "chem2", "su"):
        return "".join(shown)
    if name.startswith("oldstyledate"):
        return " ".join(shown[:2])
    if name in ("frac", "fraction", "sfrac"):
        return "/".join(shown)
    if name == "as of":
        return "As of " + " ".join(shown)
    if name in _WRITTEN and (not shown or name in ("circa", "c.", "ca.")):
        return _WRITTEN[name] + "".join(shown)
    if name in _SHOWN_LAST or name.startswith("lang-"):
        return named.get("text", shown[-1] if shown else "")
    if name in _SHOWN_FIRST:
        return next((named[key] for key in ("text", "quote", "1") if key in named), shown[0] if shown else "")
    return "" if _SILENT.fullmatch(name) else _HOLE


def _measure(arguments: list[str]) -> str:
    """`{{convert|10|to|20|km|mi}}` as "10 to 20 km": the quantity as the writer gave it, the conversion left out."""
    if len(arguments) < 2:
        return " ".join(arguments)
    words = [_grouped(arguments[0])]
    rest = arguments[1:]
    joints = {"to", "and", "-", "–", "by", "x", "or", "to(-)", "and(-)", "+/-", "±", "*", "×"}
    while len(rest) > 1 and rest[0] in joints:
        words += ["–" if rest[0] == "-" else rest[0].removesuffix("(-)"), _grouped(rest[1])]
        rest = rest[2:]
    words += [_UNITS.get(rest[0], rest[0])] if rest else []
    if len(rest) >= 3 and rest[0] in ("ft", "lb", "st", "mi", "foot") and re.fullmatch(r"[\d.]+", rest[1]):
        words += [rest[1], _UNITS.get(rest[2], rest[2])]
    return " ".join(words).replace(" – ", "–")


def _grouped(number: str) -> str:
    return f"{int(number):,}" if re.fullmatch(r"\d{4,}", number) else number


def _link(match: re.Match[str]) -> str:
    target, *labels = match[1].split("|")
    if _DROPPED_LINK.match(target):
        return ""
    label = labels[-1] if labels else target.lstrip(":")
    return label.strip("\n") or re.sub(r"^:?[\w ]*:|\s*\([^)]*\)$", "", target)


def _paragraphs(text: str) -> list[str]:
    kept = []
    skipped_level = 0
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if not skipped_level or level <= skipped_level:
                skipped_level = level if _BACK_MATTER.fullmatch(heading[2]) else 0
            continue
        line = line.strip(f" {_HOLE}")
        if skipped_level or line.startswith(_NOT_PROSE) or _FORMULA in line:
            continue
        paragraph = _tidy(_close_brackets(line))
        if len(paragraph) >= MIN_PARAGRAPH and _SENTENCE_END.search(paragraph) and not _broken(paragraph):
            kept.append(paragraph)
    return kept


def _close_brackets(line: str) -> str:
    """Within brackets a template that shows nothing here leaves no gap in the sentence: a pronunciation, mostly."""
    return re.sub(r"\([^()]*\)", lambda match: match[0].replace(_HOLE, ""), line)


def _tidy(line: str) -> str:
    """Close the holes that dropped templates leave: empty brackets, doubled blanks and stray punctuation."""
    line = _URL.sub("", line)
    line = re.sub(r"[\u00a0\u2000-\u200a\u202f\u3000\t]", " ", line)
    line = re.sub(r"[\u00ad\u200b-\u200f\u2060\ufeff]", "", line)
    line = re.sub(r"([(\[])(?:\s*[,;:–—/])+\s*", r"\1", line)
    line = re.sub(r"(?:\s*[,;:])+\s*([)\]])", r"\1", line)
    line = re.sub(r"\s*(?:\(\s*(?:or|and)?\s*\)|\[\s*\])", "", line)
    line = re.sub(r"([,;:])(?:\s*[,;])+", r"\1", line)
    line = re.sub(r",\s*\.(?!\.)", ".", line)
    line = re.sub(r"\s+([,.;:!?)\]])(?=\s|$|[)\]\"”,.;])", r"\1", line)
    line = re.sub(r"([(\[])\s+", r"\1", line)
    return re.sub(r"\s{2,}", " ", line).strip()


def _broken(paragraph: str) -> bool:
    """Whether markup is left that none of the patterns understood."""
    return any(
        mark in paragraph for mark in (_HOLE, "{{", "}}", "[[", "]]", "{|", "|}", "||", "colspan=", "style=", "thumb|")
    )
