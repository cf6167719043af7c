"""GGUF files with a tokenizer alone."""

import io
from pathlib import Path
from typing import Any

import sentencepiece
from gguf import GGUFWriter

from selfrepair.snapshots.tokenizers import PROOF


def write_fields(path: Path, fields: dict[str, Any]) -> Path:
    """A file that says this of its tokenizer; what is None is left out."""
    writer = GGUFWriter(str(path), "llama")
    adders = {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool, list: writer.add_array}
    for name, value in fields.items():
        if value is not None:
            adders[type(value)](f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def train_pieces(path: Path, defined: list[str]) -> dict[str, Any]:
    """Train SentencePiece as Gemma's vocabulary was made, and say of it what llama.cpp's converter says.

    Args:
        path: Gets SentencePiece's own file.
        defined: Pieces that the user defines.
    """
    written = io.BytesIO()
    learned = [*PROOF, "hahaha, aaaa and the <table> of the 1984 others that they then throw --- ==== 0000"] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(learned),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=defined,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    numbers = range(len(model))
    pieces = [model.id_to_piece(number) for number in numbers]

    def kind(number: int) -> int:
        told = ((model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6))
        return next((found for holds, found in told if holds(number)), 4 if pieces[number] in defined else 1)

    kinds = [kind(number) for number in numbers]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [
            piece.replace("\u2581", " ") if kind == 4 else piece for piece, kind in zip(pieces, kinds, strict=True)
        ],
        "scores": [-1000.0 if kind in (3, 4) else model.get_score(n) for n, kind in zip(numbers, kinds, strict=True)],
        "token_type": kinds,
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
        "unknown_token_id": model.unk_id(),
        "add_bos_token": True,
        "add_space_prefix": False,
    }
