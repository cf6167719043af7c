"""Token ids as text, a piece a token."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
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
