"""Tokens as text: what each of them spells, bytes that are no whole character as escapes."""

import json
import re
from collections.abc import Iterable

from selfrepair.snapshots.encoding import Encoder, byte_symbols

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a blank."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_texts(encoder: Encoder, ids: Iterable[int]) -> list[str]:
    """The text of each token alone.

    Args:
        encoder: The tokenizer (`selfrepair.snapshots.encoding.read_encoder`).
        ids: Token ids.
    """
    bytes_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())} if encoder.byte_level else {}
    blanks = _BLANK in json.dumps(encoder.parts, ensure_ascii=False)
    found = []
    for number in ids:
        piece = encoder.tokenizer.id_to_token(int(number))
        if piece is None:
            found.append(f"<{number}>")
        elif bytes_of and number not in encoder.special and all(symbol in bytes_of for symbol in piece):
            found.append(bytes(bytes_of[symbol] for symbol in piece).decode("utf-8", "backslashreplace"))
        elif byte := _BYTE.fullmatch(piece):
            found.append(bytes.fromhex(byte[1]).decode("utf-8", "backslashreplace"))
        else:
            found.append(piece.replace(_BLANK, " ") if blanks else piece)
    return found
