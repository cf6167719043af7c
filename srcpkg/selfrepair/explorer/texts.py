"""Texts of prompts: which piece each token adds, and the bytes of one that adds none."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from selfrepair.model.texts import REPLACEMENT, token_texts
from selfrepair.snapshots.encoding import byte_symbols

_BYTES = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


class Pieces:
    """The pieces that occur in some texts, each once.

    Args:
        tokenizer: The model's.

    Attributes:
        list: A text a piece. A token that spells a part of a character adds no text: a list with its bytes in hexadecimal, or
            with the token as the vocabulary has it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._places: dict[Any, int] = {}
        self.list: list[str | list[str]] = []

    def of(self, ids: Iterable[int]) -> list[int]:
        """Places in `list` of the pieces of a text."""
        numbers = list(ids)
        texts = token_texts(self._tokenizer, numbers)
        seen = ["" if text == REPLACEMENT else text for text in texts]  # a character that the end cuts off
        return [self._place(text, number) for text, number in zip(seen, numbers, strict=True)]

    def _place(self, text: str, number: int) -> int:
        key = text or number
        if key not in self._places:
            self._places[key] = len(self.list)
            self.list.append(text or [self._spelled(number)])
        return self._places[key]

    def _spelled(self, number: int) -> str:
        token = self._tokenizer.id_to_token(number) or f"token {number}"
        if token.startswith("<0x"):
            return token[3:-1]
        if all(symbol in _BYTES for symbol in token):
            return " ".join(f"{_BYTES[symbol]:02X}" for symbol in token)
        return token
