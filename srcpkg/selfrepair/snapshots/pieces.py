"""SentencePiece's BPE as a GGUF file describes it, run by the tokenizers library and by SentencePiece itself.

SentencePiece joins, again and again, the two neighbours that make the piece of the best score, the leftmost of equals. Pieces
that a user defined are searched for first, the longest at each place, and are joined with nothing. A blank is a character of
its own (U+2581), and a character that no piece holds is spelled in bytes. Facts are from google/sentencepiece
(`src/bpe_model.cc`, `src/normalizer.cc`) and from llama.cpp (`convert_hf_to_gguf.py`, what the fields of a GGUF file mean).
"""

import struct
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

_BLANK = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Kinds of pieces, numbered as in SentencePiece's models and in GGUF files."""


@dataclass(frozen=True)
class Pieces:
    """A vocabulary of pieces.

    Attributes:
        texts: By id; those that a user defined may have blanks as they stand in texts.
        scores: By id; the best is joined first.
        kinds: By id.
        unknown: The id of the unknown token.
    """

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    unknown: int

    def of_kind(self, kind: int) -> list[str]:
        """The texts of one kind, by id."""
        return [text for text, own in zip(self.texts, self.kinds, strict=True) if own == kind]


def read_pieces(name: str, fields: dict[str, Any]) -> Pieces:
    """The pieces that a GGUF file describes.

    Args:
        name: The file's, for errors.
        fields: What it says of its tokenizer, by the last part of each name.

    Raises:
        ValueError: Something is missing, or is set otherwise than this module knows.
    """
    own_files = "use path: or hub: with the model's own safetensors and tokenizer"
    if fields.get("add_space_prefix") is not False:
        raise ValueError(
            f"{name}: tokenizer.ggml.add_space_prefix is not set to false: whether a blank was put before each text, and "
            f"where, cannot be told for sure: {own_files}"
        )
    for key in ("remove_extra_whitespaces", "precompiled_charsmap", "normalizer.lowercase"):
        if fields.get(key):
            raise ValueError(
                f"{name}: tokenizer.ggml.{key} is set, which changes texts before they are cut: {own_files}"
            )
    texts, scores, kinds = (fields.get(key) or [] for key in ("tokens", "scores", "token_type"))
    unknown = fields.get("unknown_token_id", -1)
    fault = _fault(texts, scores, kinds, unknown)
    if fault:
        raise ValueError(f"{name}: its tokenizer has {fault}: fetch it again, or {own_files}")
    # llama.cpp's converter calls the unknown token a control token where the model's own files call it special.
    kinds = [_CONTROL if kind == _UNKNOWN else kind for kind in kinds]
    kinds[unknown] = _UNKNOWN
    return Pieces(list(texts), [float(score) for score in scores], kinds, unknown)


def _fault(texts: list[str], scores: list[float], kinds: list[int], unknown: int) -> str | None:
    """What makes of these no vocabulary."""
    if not texts or not len(texts) == len(scores) == len(kinds):
        return f"{len(texts)} tokens, {len(scores)} scores and {len(kinds)} token types"
    if len(set(texts)) < len(texts):
        return f"{len(texts) - len(set(texts))} tokens twice"
    strange = set(kinds) - {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    if strange:
        return f"tokens of type {', '.join(map(str, sorted(strange)))}"
    spelled = {text for text, kind in zip(texts, kinds, strict=True) if kind == _BYTE}
    if spelled != {f"<0x{byte:02X}>" for byte in range(256)}:
        return "no token for each byte (<0x00> to <0xFF>)"
    if not 0 <= unknown < len(texts):
        return "no unknown token (unknown_token_id)"
    return None


def piece_tokenizer(pieces: Pieces, bos: str | None) -> Tokenizer:
    """The pieces, run by the tokenizers library.

    Args:
        pieces: The vocabulary.
        bos: The token that stands before a text where special tokens are asked for; None for none.
    """
    vocabulary = {text: number for number, text in enumerate(pieces.texts)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces),
            unk_token=pieces.texts[pieces.unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _BLANK)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    special = [*pieces.of_kind(_UNKNOWN), *pieces.of_kind(_CONTROL)]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    # Searched for among blanks that have become U+2581, as SentencePiece does.
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=True) for text in pieces.of_kind(_USER_DEFINED)])
    return tokenizer


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Every two pieces that make a third one, the third of the best score first."""
    numbers = [number for number, kind in enumerate(pieces.kinds) if kind == _NORMAL]
    known = {pieces.texts[number] for number in numbers}
    merges = []
    for number in sorted(numbers, key=lambda number: -pieces.scores[number]):
        text = pieces.texts[number]
        cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
        merges += [(left, right) for left, right in cuts if left in known and right in known]
    return merges


def sentencepiece_model(pieces: Pieces) -> bytes:
    """The pieces as a model file of SentencePiece, which needs protobuf to be written by SentencePiece's own code.

    Fields are numbered as in `src/sentencepiece_model.proto`.
    """
    parts = [
        _field(1, _field(1, text.replace(" ", _BLANK)) + _field(2, score) + _field(3, kind))
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
    ]
    bpe, byte_fallback, unk_id = _field(3, 2), _field(35, 1), _field(40, pieces.unknown)
    parts.append(_field(2, bpe + byte_fallback + unk_id + _field(45, pieces.texts[pieces.unknown])))
    no_prefix, blanks_stay, blanks_written = _field(3, 0), _field(4, 0), _field(5, 1)
    parts.append(_field(3, _field(1, "identity") + no_prefix + blanks_stay + blanks_written))
    return b"".join(parts)


def _field(number: int, value: str | bytes | int | float) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode("utf-8") if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
