"""What a page holds, read as the page's own scripts read it, but in Python: an independent reader of the format."""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def inflate(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text), wbits=-15)


def unpack(text: str, size: int) -> list[np.ndarray]:
    """Whole numbers, NaN where there is none."""
    content, arrays, at = inflate(text), [], 0
    while at < len(content):
        planes, at = content[at], at + 1
        coded = np.zeros(size, object)
        for _ in range(planes):
            coded = coded * 256 + np.frombuffer(content[at : at + size], np.uint8).astype(int)
            at += size
        signed = [np.nan if code == 0 else -(code // 2) if code % 2 == 0 else (code - 1) // 2 for code in coded]
        arrays.append(np.array(signed, float))
    return arrays


def values(kind: Mapping[str, Any], text: str, size: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Steps by quantity, and the arrays that follow them."""
    arrays = unpack(text, size)
    found: dict[str, np.ndarray] = {}
    for (name, plus, minus), rest in zip(kind["stored"], arrays, strict=False):
        added = sum((found[part] for part in plus), np.zeros(size)) - sum(
            (found[part] for part in minus), np.zeros(size)
        )
        found[name] = np.where(np.isnan(added), rest, rest + added)
    return found, arrays[len(kind["stored"]) :]


def content(page: str) -> dict[str, Any]:
    """The data of a page."""
    return json.loads(page.split('<script type="application/json" id="content">', 1)[1].split("</script>", 1)[0])


def tables(kind: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return json.loads(inflate(kind["tables"]))
