"""SentencePiece's BPE out of a GGUF file gives the ids that SentencePiece gives, or is refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from selfrepair.snapshots.encoding import CHARACTERS_A_CALL, read_encoder
from selfrepair.snapshots.pieces import read_pieces, sentencepiece_model
from selfrepair.snapshots.tokenizers import PROOF, settle_tokenizer, write_gguf_tokenizer

from gguf_files import train_pieces, write_fields

pytestmark = pytest.mark.filterwarnings("error", "default::DeprecationWarning")

DEFINED = ["\n", "\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "\t", "<table>", "</table>", "[multimodal]"]
"""Pieces that a user defined, as in Gemma's vocabulary: runs of blanks and of line ends, tags."""

ODD = (
    *("", " ", "  ", "     ", "\n", "\n\n\n\n\n", "\t\t", " a", "a ", "  a  b   c    d     e"),
    *("\u2581", "\u2581\u2581 \u2581a", "a\u00a0b", "\u3000", "\r\n\r\n", "\x00\x01\x1b\x7f", "\ufeff\ufffd\ufffe"),
    *(
        "<table><table></table>",
        "< table>",
        "<<table>>",
        "<s>",
        "<unk>",
        "<0x41>",
        "<0x0A>\n",
        "[multimodal][multimodal",
    ),
    *("aaaaaaaaaaaaa", "hahahahahaha", "=" * 70, "-_-_-_-", "\U00010380\U0001f9ff\U0010ffff", "e\u0301\u0302\u0303"),
)


def strings(seed: int, number: int, vocabulary: list[str]) -> list[str]:
    """Random texts: of pieces, of few characters again and again, of blanks, of any character."""
    rng = random.Random(seed)
    runs = ["a", "ab", "ha", "la", "=", "-", "0", "th", "in", " ", "  ", "\n", "\t", "<", ">", "</", "\u2581", "e"]
    blanks = [" ", "\n", "\t", "\r", "a", "\u00a0", "\u3000", "\u2581", " " * 31, "\n" * 31, "\t" * 31, "<table>"]

    def character() -> str:
        code = rng.randrange(rng.choice([0x80, 0x800, 0xD800, 0x110000]))
        return chr(code if not 0xD800 <= code < 0xE000 else code - 0x800)

    kinds: list[Callable[[], str]] = [
        lambda: "".join(rng.choices(vocabulary, k=rng.randrange(2, 12))),
        lambda: "".join(rng.choice(runs) * rng.randrange(1, 40) for _ in range(rng.randrange(1, 5))),
        lambda: "".join(rng.choices(blanks, k=rng.randrange(1, 60))),
        lambda: "".join(character() for _ in range(rng.randrange(1, 30))),
        lambda: "".join(rng.choices("aeotn hi", k=rng.randrange(1, 60))),
    ]
    return [kinds[at % len(kinds)]() for at in range(number)]


def ids_of(folder: Path, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in read_encoder(folder).encode(texts)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model of SentencePiece as the library has trained it, and what llama.cpp's converter would write of it."""
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    return path, train_pieces(path, DEFINED)


@pytest.fixture
def folder(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A model folder with the tokenizer out of the GGUF file."""
    path = write_fields(tmp_path / "model.gguf", trained[1])
    taken = tmp_path / "taken"
    taken.mkdir()
    write_gguf_tokenizer(path, taken)
    size = len(trained[1]["tokens"])
    (taken / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size}))
    settle_tokenizer(taken, "package:some")
    return taken


def test_pieces_are_run_as_sentencepiece_runs_them(trained: tuple[Path, dict[str, Any]], folder: Path) -> None:
    encode = SentencePieceProcessor(model_file=str(trained[0])).encode
    texts = [*PROOF, *ODD, *trained[1]["tokens"], *strings(0, 5000, trained[1]["tokens"])]
    different = [text for text, ids in zip(texts, ids_of(folder, texts), strict=True) if ids != encode(text)]
    assert different == []


def test_the_model_that_they_are_held_against_is_the_trained_one(trained: tuple[Path, dict[str, Any]]) -> None:
    file, fields = trained
    ours = SentencePieceProcessor(model_proto=sentencepiece_model(read_pieces("model.gguf", fields)))
    theirs = SentencePieceProcessor(model_file=str(file))
    assert [ours.id_to_piece(n) for n in range(len(ours))] == [theirs.id_to_piece(n) for n in range(len(theirs))]
    texts = [*PROOF, *ODD, *strings(1, 500, fields["tokens"])]
    assert ours.encode(texts) == theirs.encode(texts)


def test_long_texts_in_windows_are_those_in_one(folder: Path) -> None:
    text = " ".join(PROOF) * (2 * CHARACTERS_A_CALL // len(" ".join(PROOF)) + 1)
    encoder = read_encoder(folder)
    whole = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    assert next(encoder.encode([text])).tolist() == whole


def test_whoever_loads_the_folder_gets_bos_and_the_text_back(folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (loaded.bos_token, loaded.bos_token_id, loaded.eos_token) == ("<s>", 1, "</s>")
    encoder = read_encoder(folder)
    assert (encoder.bos, encoder.eos, encoder.unknown) == (("<s>", 1), ("</s>", 2), 0)
    for text in PROOF:
        ids = loaded(text)["input_ids"]
        assert ids == [1, *ids_of(folder, [text])[0]]
        assert loaded.decode(ids[1:], clean_up_tokenization_spaces=False) == text


def _without_byte(fields: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": ["<0x0A >" if token == "<0x0A>" else token for token in fields["tokens"]]}


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "a blank before texts": (lambda _: {"add_space_prefix": True}, "add_space_prefix is not set to false"),
    "perhaps a blank": (lambda _: {"add_space_prefix": None}, "add_space_prefix is not set to false"),
    "blanks removed": (lambda _: {"remove_extra_whitespaces": True}, "remove_extra_whitespaces is set"),
    "normalized": (lambda _: {"precompiled_charsmap": [1, 2, 3]}, "precompiled_charsmap is set"),
    "no scores": (lambda _: {"scores": None}, r"has \d+ tokens, 0 scores and \d+ token types"),
    "no types": (lambda f: {"token_type": f["token_type"][1:]}, r"has \d+ tokens, \d+ scores and \d+ token types"),
    "twice": (lambda f: {"tokens": [*f["tokens"][:-1], f["tokens"][-2]]}, "has 1 tokens twice"),
    "unused tokens": (lambda f: {"token_type": [*f["token_type"][:-1], 5]}, "has tokens of type 5"),
    "no byte": (_without_byte, r"has no token for each byte \(<0x00> to <0xFF>\)"),
    "no unknown": (lambda _: {"unknown_token_id": None}, r"has no unknown token \(unknown_token_id\)"),
    "BOS outside": (lambda _: {"bos_token_id": 100_000}, "bos_token has id 100000, its vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_gguf_file_leaves_open_is_refused(
    case: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    change, words = REFUSED[case]
    path = write_fields(tmp_path / "model.gguf", {**trained[1], **change(trained[1])})
    with pytest.raises(ValueError, match=words) as caught:
        write_gguf_tokenizer(path, tmp_path)
    assert str(caught.value).startswith("model.gguf: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_vocabulary_that_the_library_runs_otherwise_is_refused(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our own making: every second merge is forgotten."""
    from selfrepair.snapshots import pieces

    merges = pieces._merges
    monkeypatch.setattr(pieces, "_merges", lambda vocabulary: merges(vocabulary)[::2])
    with pytest.raises(ValueError, match=r"cannot be run as SentencePiece runs it: of '.*' the one gives \["):
        write_gguf_tokenizer(write_fields(tmp_path / "model.gguf", trained[1]), tmp_path)
