"""Texts as ids and ids as texts: BOS, characters of several tokens, special tokens that a text spells out."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfrepair.model.texts import REPLACEMENT, text_reader, token_texts
from selfrepair.snapshots.encoding import byte_symbols

from tiny_model import save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

TEXTS = ("two words", " blank first", "ein schöner Tag", "日本語 🚀", "line\n\nbreak\ttab", "<|end|>")


@pytest.fixture
def bytes_alone() -> PreTrainedTokenizerFast:
    """A token a byte, so that every other character takes several."""
    symbols = ["<|end|>", *byte_symbols()]
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_pieces_join_to_the_text(bytes_alone: PreTrainedTokenizerFast, text: str) -> None:
    reader = text_reader(bytes_alone)
    (ids,) = reader.ids(text, "text")
    pieces = reader.pieces(ids)
    assert len(pieces) == len(ids) == 1 + len(text.encode())
    assert "".join(pieces) == f"<|end|>{text}"
    # A character is its last token's.
    assert pieces[1:] == [part for letter in text for part in [""] * (len(letter.encode()) - 1) + [letter]]


def test_a_character_that_the_end_cuts_off_is_marked(bytes_alone: PreTrainedTokenizerFast) -> None:
    (ids,) = text_reader(bytes_alone).ids("ab日", "text")
    assert token_texts(bytes_alone.backend_tokenizer, ids[:-1]) == ["<|end|>", "a", "b", "", REPLACEMENT]
    assert token_texts(bytes_alone.backend_tokenizer, []) == []


def test_a_folder_reads_no_special_token_out_of_a_text(bytes_alone: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bytes_alone.save_pretrained(tmp_path)
    (spelled,) = text_reader(tmp_path).ids("<|end|>", "text")
    assert spelled[0] == 0
    assert 0 not in spelled[1:]
    (read,) = text_reader(bytes_alone).ids("<|end|>", "text")
    assert read.tolist() == [0, 0]


def test_a_folder_and_its_tokenizer_give_the_same_ids(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    by_folder, again = text_reader(tmp_path), text_reader(str(tmp_path))
    by_tokenizer = text_reader(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    for reader in (again, by_tokenizer, text_reader(by_folder)):
        np.testing.assert_array_equal(
            reader.ids(["the cat sat", "a dog ran"], "x"), by_folder.ids(["the cat sat", "a dog ran"], "x")
        )
    assert by_folder.ids("the cat", "x")[0, 0] == 0


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["the cat", "the cat sat"], "tokens holds texts of 3 to 4 tokens; wanted one length"),
        ("", "tokens holds a text of 1 tokens; wanted two or more"),
        ([], "tokens holds a text of no tokens"),
    ],
)
def test_texts_that_make_no_prompts_are_refused(tmp_path: Path, texts: str | list[str], said: str) -> None:
    save_tiny_model(tmp_path)
    with pytest.raises(ValueError, match=said):
        text_reader(tmp_path).ids(texts, "tokens")


@pytest.mark.parametrize("wrong", [3, print, None])
def test_what_is_no_tokenizer_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"wanted the folder of a model with its tokenizer.json, or a fast tokenizer"):
        text_reader(wrong)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.json and tokenizer_config.json are no tokenizer"):
        text_reader(tmp_path)
