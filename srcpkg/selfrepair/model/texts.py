"""Texts as token ids, and token ids as pieces of text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from selfrepair.snapshots.encoding import read_encoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TextReader:
    """A tokenizer as measurements use it: BOS first where the tokenizer has one, no other token that is not in the text.

    Attributes:
        tokenizer: Of the tokenizers library.
        bos: Id of the beginning-of-sequence token, or None.
        special: Whether special tokens that a text spells out are read as such; those of a snapshot are not.
    """

    tokenizer: Tokenizer
    bos: int | None
    special: bool

    def ids(self, texts: str | Sequence[str], name: str) -> Int[np.ndarray, "prompt pos"]:
        """Token ids of texts of one length.

        Args:
            texts: One text or several.
            name: What errors call them.

        Raises:
            ValueError: No text, one of fewer than two tokens, or texts of different lengths.
        """
        rows = [self._row(text) for text in ([texts] if isinstance(texts, str) else texts)]
        lengths = sorted({len(row) for row in rows})
        if not lengths or lengths[0] < 2:
            raise ValueError(
                f"{name} holds a text of {lengths[0] if lengths else 'no'} tokens; wanted two or more in each"
            )
        if len(lengths) > 1:
            raise ValueError(
                f"{name} holds texts of {lengths[0]} to {lengths[-1]} tokens; wanted one length: ablate them one at a time, or "
                f"cut their token ids to {lengths[0]}"
            )
        return np.array(rows, np.int64)

    def pieces(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """What each token of a text adds to it, as `token_texts`."""
        return token_texts(self.tokenizer, ids)

    def _row(self, text: str) -> list[int]:
        before = self.tokenizer.encode_special_tokens
        self.tokenizer.encode_special_tokens = not self.special
        try:
            found = self.tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self.tokenizer.encode_special_tokens = before
        return found if self.bos is None else [self.bos, *found]


def text_reader(tokenizer: Any) -> TextReader:
    """A tokenizer in any of the forms that a user has one in.

    Args:
        tokenizer: A model's folder (a snapshot, for one), a fast tokenizer of transformers, or a `TextReader`.

    Raises:
        ValueError: None of these, or a folder without a tokenizer.
    """
    if isinstance(tokenizer, TextReader):
        return tokenizer
    if isinstance(tokenizer, str | Path):
        encoder = read_encoder(Path(tokenizer))
        return TextReader(encoder.tokenizer, encoder.bos[1] if encoder.bos else None, special=False)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; wanted the folder of a model with its tokenizer.json, or a fast "
            "tokenizer of transformers (AutoTokenizer.from_pretrained)"
        )
    return TextReader(fast, tokenizer.bos_token_id, special=True)


def token_texts(tokenizer: Tokenizer, ids: Iterable[int] | np.ndarray) -> list[str]:
    """What each token of a text adds to it.

    Args:
        tokenizer: The model's.
        ids: Token ids, in the order of the text.

    Returns:
        A piece a token; joined, they are the text. A character that several tokens spell belongs to the last of them, and those
        before it add nothing; one that the end cuts off is a replacement character. Special tokens are written out.
    """
    stream = DecodeStream(skip_special_tokens=False)
    pieces = [stream.step(tokenizer, int(number)) for number in ids]
    if pieces and pieces[-1] is None:
        pieces[-1] = REPLACEMENT
    return [piece or "" for piece in pieces]
