"""Texts to token ids by a snapshot's tokenizer.json, run as it is, in calls of bounded size."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

CHARACTERS_A_CALL = 200_000
"""The tokenizers library holds some 130 bytes a character while it works."""
OVERLAP = 4_000
"""Characters that two neighbouring windows of a long text share; where they meet, they must agree."""
CUT_BY_RULES = ("BPE", "WordPiece", "WordLevel")
"""Models whose tokens follow from the text around them; Unigram sums scores over all of it, where rounding may decide."""
LEAST_AGREEMENT = 16
"""Tokens in a row that two windows must agree on."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that runs what its tokenizer.json says, and reads no special token out of a text.

    Attributes:
        tokenizer: As the file says, without its truncation and padding.
        parts: The file's normalizer, pre-tokenizer and model, without vocabulary and merges.
        bos: The beginning-of-sequence token and its id, or None.
        eos: The end-of-sequence token and its id, or None.
    """

    tokenizer: Tokenizer
    parts: dict[str, Any]
    bos: tuple[str, int] | None
    eos: tuple[str, int] | None

    @cached_property
    def special(self) -> dict[int, str]:
        """Special tokens by id, but the unknown token, which an ordinary text may give."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        found = {number: token.content for number, token in added if token.special}
        found.update({pair[1]: pair[0] for pair in (self.bos, self.eos) if pair})
        if self.unknown is not None and self.unknown not in {pair[1] for pair in (self.bos, self.eos) if pair}:
            found.pop(self.unknown, None)
        return found

    @cached_property
    def unknown(self) -> int | None:
        """The id of what the vocabulary does not hold; None where the model has none."""
        model = self.parts["model"]
        if model.get("unk_id") is not None:
            return int(model["unk_id"])
        token = model.get("unk_token")
        return None if token is None else self.tokenizer.token_to_id(token)

    @cached_property
    def byte_level(self) -> bool:
        """Whether texts are spelled in bytes (GPT-2's way) before anything is looked up."""
        return "ByteLevel" in json.dumps([self.parts["normalizer"], self.parts["pre_tokenizer"]])

    @cached_property
    def lost_bytes(self) -> frozenset[int]:
        """Bytes of UTF-8 that a byte-level vocabulary lacks, and that are lost in silence where a text holds them."""
        if not self.byte_level or self.unknown is not None:
            return frozenset()
        return frozenset(b for b, symbol in enumerate(byte_symbols()) if self.tokenizer.token_to_id(symbol) is None)

    @cached_property
    def may_lose(self) -> bool:
        """Whether characters that are not in the vocabulary give no token at all."""
        model = self.parts["model"]
        return (
            model.get("type") == "BPE" and self.unknown is None and not (self.byte_level or model.get("byte_fallback"))
        )

    def encode(self, texts: Iterable[str]) -> Iterator[Int[np.ndarray, " token"]]:
        """The ids of each text, without special tokens, the same whatever else is encoded with it.

        Short texts go together, long ones in windows, so that memory does not grow with either.
        """
        batch: list[str] = []
        size = 0
        for text in texts:
            if batch and size + len(text) > CHARACTERS_A_CALL:
                yield from self._encode_short(batch)
                batch, size = [], 0
            if len(text) > CHARACTERS_A_CALL:
                yield self._encode_long(text)
            else:
                batch.append(text)
                size += len(text)
        yield from self._encode_short(batch)

    def _encode_short(self, texts: list[str]) -> Iterator[Int[np.ndarray, " token"]]:
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int32)

    def _encode_long(self, text: str) -> Int[np.ndarray, " token"]:
        """Window after window; each begins at a token of the one before, and takes over where both give the same.

        What a window gives near its ends may be wrong, since the text goes on there. In the middle of what two windows
        share, the one has far more text before it and the other far more after it: where they agree there on every
        token, neither end has reached it.
        """
        if self.parts["model"].get("type") not in CUT_BY_RULES:
            return self._encode_whole(text, f"a {self.parts['model'].get('type')} model weighs every piece of a text")
        parts = []
        left = self._window(text, 0, CHARACTERS_A_CALL)
        while left.end < len(text):
            for overlap in (OVERLAP, 8 * OVERLAP, CHARACTERS_A_CALL // 2):
                right = self._window(text, left.token_start(left.end - overlap), left.end - overlap + CHARACTERS_A_CALL)
                seam = _seam(left, right)
                if seam is not None:
                    break
            else:
                return self._encode_whole(text, "it has no place to cut it at")
            parts.append(left.ids[: seam[0]])
            left = right.without(seam[1])
        return np.concatenate([*parts, left.ids])

    def _encode_whole(self, text: str, reason: str) -> Int[np.ndarray, " token"]:
        """Where nothing is sure but the whole: slower and larger, never wrong."""
        logger.warning("a text of %d characters is tokenized whole: %s", len(text), reason)
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def _window(self, text: str, start: int, end: int) -> "_Window":
        encoding = self.tokenizer.encode(text[start:end], add_special_tokens=False)
        starts = np.array([first for first, _ in encoding.offsets], dtype=np.int64) + start
        return _Window(np.array(encoding.ids, dtype=np.int32), starts, start, min(end, len(text)))


@dataclass(frozen=True)
class _Window:
    """Tokens of a part of a text, and the character of the text that each starts at."""

    ids: np.ndarray
    starts: np.ndarray
    start: int
    end: int

    def token_start(self, at: int) -> int:
        """The first character from `at` on that a token starts at."""
        later = self.starts[self.starts >= at]
        return int(later[0]) if len(later) else at

    def between(self, low: int, high: int) -> slice:
        """The tokens that start at `low` or later and before `high`."""
        inside = np.flatnonzero((self.starts >= low) & (self.starts < high))
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)

    def without(self, tokens: int) -> "_Window":
        """The window without its first tokens."""
        return _Window(self.ids[tokens:], self.starts[tokens:], self.start, self.end)


def _seam(left: _Window, right: _Window) -> tuple[int, int] | None:
    """The same token counted in both windows, in the middle of what they share; None if they differ in its inner half."""
    quarter = (left.end - right.start) // 4
    bounds = right.start + quarter, left.end - quarter
    ours, theirs = left.between(*bounds), right.between(*bounds)
    length = ours.stop - ours.start
    if length < LEAST_AGREEMENT or length != theirs.stop - theirs.start:
        return None
    if not np.array_equal(left.ids[ours], right.ids[theirs]):
        return None
    if not np.array_equal(left.starts[ours], right.starts[theirs]):
        return None
    return ours.start + length // 2, theirs.start + length // 2


def read_encoder(folder: Path) -> Encoder:
    """The tokenizer of a model folder: its tokenizer.json, with BOS and EOS from its tokenizer_config.json.

    Args:
        folder: A model snapshot.

    Raises:
        ValueError: A file cannot be read, or BOS or EOS is not in the vocabulary.
    """
    path = folder / TOKENIZER
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
        content = json.loads(text)
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} and {TOKENIZER_CONFIG} are no tokenizer ({reason}): "
            "remake the snapshot with `snakemake --forcerun snapshot_model`"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    bos, eos = (_named(tokenizer, config, name, path) for name in ("bos_token", "eos_token"))
    model = {key: value for key, value in content["model"].items() if key not in ("vocab", "merges")}
    parts = {"normalizer": content.get("normalizer"), "pre_tokenizer": content.get("pre_tokenizer"), "model": model}
    return Encoder(tokenizer, parts, bos, eos)


def token_text(value: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with its `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def model_vocabulary(folder: Path) -> int:
    """How many tokens a snapshot's model has embeddings for, by its config.

    Raises:
        ValueError: The config does not say.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        raise ValueError(f"{folder / 'config.json'} has no vocab_size: wanted the number of the model's embeddings")
    return size


def check_vocabulary(encoder: Encoder, vocab_size: int, name: str) -> None:
    """Refuse a tokenizer whose BOS or EOS the model has no embedding for.

    Args:
        encoder: The tokenizer.
        vocab_size: Of the model's config.
        name: What the error calls the model.

    Raises:
        ValueError: With the token and its id.
    """
    for what, pair in (("BOS", encoder.bos), ("EOS", encoder.eos)):
        if pair and pair[1] >= vocab_size:
            raise ValueError(f"{name}: {what} is {beyond_vocabulary(pair[0], pair[1], vocab_size)}")


def beyond_vocabulary(token: str | None, number: int, vocab_size: int) -> str:
    """The error's words for a token that the model has no embedding for."""
    return (
        f"token {token!r} of id {number}, beyond the model's vocabulary of {vocab_size} (vocab_size in config.json): "
        "the tokenizer is of another model; use the one that the weights were trained with"
    )


def byte_symbols() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's `encoder.py`, 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def _named(tokenizer: Tokenizer, config: dict[str, Any], name: str, path: Path) -> tuple[str, int] | None:
    token = token_text(config.get(name))
    if token is None:
        return None
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(
            f"{path} does not hold the {name} {token!r} that {TOKENIZER_CONFIG} names: correct one of the two"
        )
    return token, number
