"""Prompts: cut as TransformerLens cuts them, none twice, each with donors of its own shard."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformer_lens.utilities.tokenize_utils import tokenize_and_concatenate
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selfrepair.files.hdf5 import open_hdf5
from selfrepair.files.sealed import read_json
from selfrepair.measure.tokens import assign_donors, check_prompts, cut_prompts, read_shard, tokenize_corpus
from selfrepair.snapshots import encoding
from selfrepair.snapshots.corpora import snapshot_corpus
from selfrepair.snapshots.encoding import byte_symbols
from selfrepair.snapshots.models import snapshot_model

from tiny_model import WORDS, save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

DOCUMENTS = [
    " ".join(np.random.default_rng(seed).choice(WORDS[2:], size=size)) for seed, size in enumerate((70, 3, 55, 41))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a tiny model's snapshot, whose tokenizer has BOS and EOS."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    set_eos(folder, "<s>")
    manifest = tmp_path_factory.mktemp("snapshot") / "manifest.json"
    snapshot_model(manifest, source=f"path:{folder}")
    return manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_text(text)
    manifest = tmp_path_factory.mktemp("corpus") / "manifest.json"
    snapshot_corpus(manifest, source=f"path:{folder}")
    return manifest


def set_eos(folder: Path, eos: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)


def settings(model: Path, corpus: Path, out: Path, **changed: Any) -> dict[str, Any]:
    return {
        "model_manifest": model,
        "corpus_manifest": corpus,
        "out": out,
        "prompt_length": 16,
        "prompts_per_shard": 3,
        "donors": 2,
        "seed": 0,
        "provenance": {},
        **changed,
    }


@pytest.fixture
def tokens_file(model: Path, corpus: Path, tmp_path: Path) -> Path:
    tokenize_corpus(**settings(model, corpus, tmp_path / "tokens.h5"))
    return tmp_path / "tokens.h5"


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_hdf5(path, "tokens") as dataset:
        return dataset["tokens"].values, dataset["donors"].values


def test_prompts_are_those_of_transformerlens(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model.parent)
    theirs = tokenize_and_concatenate(
        Dataset.from_dict({"text": DOCUMENTS}),
        AutoTokenizer.from_pretrained(model.parent),
        max_length=16,
        num_proc=None,
    )
    encoded = tokenizer(DOCUMENTS, add_special_tokens=False)["input_ids"]
    ours = cut_prompts(encoded, length=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    assert len(ours) == (sum(map(len, encoded)) + len(DOCUMENTS) - 1) // 15
    np.testing.assert_array_equal(ours, np.asarray(theirs["tokens"]))


def test_prompts_without_bos_are_those_of_transformerlens(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model.parent)
    theirs = tokenize_and_concatenate(
        Dataset.from_dict({"text": DOCUMENTS}),
        AutoTokenizer.from_pretrained(model.parent),
        max_length=16,
        add_bos_token=False,
        num_proc=None,
    )
    encoded = tokenizer(DOCUMENTS, add_special_tokens=False)["input_ids"]
    ours = cut_prompts(encoded, length=16, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    np.testing.assert_array_equal(ours, np.asarray(theirs["tokens"]))


def test_prompts_by_hand() -> None:
    rows = cut_prompts([[5, 6, 7], [8], [9, 10, 11]], length=4, bos_token_id=1, eos_token_id=2)
    # The stream is 5 6 7 2 8 2 9 10 11.
    assert rows.tolist() == [[1, 5, 6, 7], [1, 2, 8, 2], [1, 9, 10, 11]]
    assert rows.dtype == np.int32


def test_no_prompt_comes_twice_and_the_rest_keeps_its_order() -> None:
    rows = cut_prompts([[9, 9, 5, 6, 9, 9, 7, 8, 5, 6, 3]], length=3, bos_token_id=1, eos_token_id=2)
    assert rows.tolist() == [[1, 9, 9], [1, 5, 6], [1, 7, 8]]


def test_text_shorter_than_a_prompt_gives_none() -> None:
    assert cut_prompts([[5]], length=4, bos_token_id=1, eos_token_id=2).shape == (0, 4)
    assert cut_prompts([], length=4, bos_token_id=None, eos_token_id=2).shape == (0, 4)


@pytest.mark.parametrize(("shard", "donors"), [(2, 1), (4, 1), (4, 3), (5, 2)])
def test_donors_are_distinct_others_of_the_same_shard_used_equally(shard: int, donors: int) -> None:
    n_prompts = 3 * shard
    found = assign_donors(n_prompts, shard, donors)
    assert found.shape == (n_prompts, donors)
    own = np.arange(n_prompts)[:, None]
    assert (found != own).all()
    assert (found // shard == own // shard).all()
    assert all(len(set(row)) == donors for row in found.tolist())
    assert np.bincount(found.ravel(), minlength=n_prompts).tolist() == [donors] * n_prompts


def test_too_many_donors_are_refused() -> None:
    with pytest.raises(
        ValueError, match="donors is 4, but a shard of 4 prompts holds 3 others: raise prompts_per_shard"
    ):
        assign_donors(8, 4, 4)


def test_the_file_holds_every_whole_shard_of_the_text_once(tokens_file: Path, model: Path) -> None:
    tokens, donors = read(tokens_file)
    tokenizer = AutoTokenizer.from_pretrained(model.parent)
    n_tokens = sum(len(text.split()) for text in DOCUMENTS) + len(DOCUMENTS) - 1
    assert tokens.shape == (n_tokens // 15 // 3 * 3, 16)
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert len({tuple(row) for row in tokens.tolist()}) == len(tokens)
    np.testing.assert_array_equal(donors, assign_donors(len(tokens), 3, 2))
    # Whatever the order of documents and prompts, each prompt is a run of words of the text.
    text = [" ".join(["<s>", *words, "<s>"]) for words in (document.split() for document in DOCUMENTS)]
    inner = [
        words for words in (tokenizer.convert_ids_to_tokens(row[1:]) for row in tokens.tolist()) if "<s>" not in words
    ]
    assert inner
    assert all(any(" ".join(words) in one for one in text) for words in inner)


def test_the_seed_orders_prompts_and_nothing_else_does(
    model: Path, corpus: Path, tokens_file: Path, tmp_path: Path
) -> None:
    first, _ = read(tokens_file)
    tokenize_corpus(**settings(model, corpus, tmp_path / "again.h5"))
    np.testing.assert_array_equal(read(tmp_path / "again.h5")[0], first)
    tokenize_corpus(**settings(model, corpus, tmp_path / "other.h5", seed=1))
    assert (read(tmp_path / "other.h5")[0] != first).any()


def test_prompts_are_not_in_the_order_of_the_text(tokens_file: Path, model: Path, corpus: Path) -> None:
    """Else the first shards would be one document."""
    tokenizer = AutoTokenizer.from_pretrained(model.parent)
    order = np.random.default_rng(0).permutation(len(DOCUMENTS))
    encoded = tokenizer([DOCUMENTS[i] for i in order], add_special_tokens=False)["input_ids"]
    rows = cut_prompts(encoded, length=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    tokens, _ = read(tokens_file)
    assert {tuple(row) for row in tokens.tolist()} <= {tuple(row) for row in rows.tolist()}
    assert (tokens != rows[: len(tokens)]).any()


def test_a_shard_is_read_with_donors_counted_from_its_first_prompt(tokens_file: Path) -> None:
    tokens, donors = read(tokens_file)
    shard = read_shard(tokens_file, slice(3, 6))
    np.testing.assert_array_equal(shard.tokens, tokens[3:6])
    np.testing.assert_array_equal(shard.tokens[shard.donors], tokens[donors[3:6]])


def test_text_that_fills_no_shard_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    message = r"holds 11 prompts of 16 tokens, fewer than one shard of 12: add text, or lower prompts_per_shard"
    with pytest.raises(ValueError, match=message):
        tokenize_corpus(**settings(model, corpus, tmp_path / "tokens.h5", prompts_per_shard=12))
    assert not (tmp_path / "tokens.h5").exists()


def test_a_tokenizer_without_eos_is_refused(corpus: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    manifest = tmp_path / "snapshot" / "manifest.json"
    snapshot_model(manifest, source=f"path:{tmp_path / 'model'}")
    with pytest.raises(ValueError, match="has no EOS token to join documents with: set one"):
        tokenize_corpus(**settings(manifest, corpus, tmp_path / "tokens.h5"))


def made(tmp_path: Path, texts: list[str], tokenizer: Tokenizer, vocab_size: int, **special: str) -> Path:
    """Snapshots of a tiny model with another tokenizer and of some texts; the tokens file that they give."""
    save_tiny_model(tmp_path / "tiny")
    tokenizer.save(str(tmp_path / "tiny" / "tokenizer.json"))
    (tmp_path / "tiny" / "tokenizer_config.json").write_text(json.dumps(special))
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**{**config, "vocab_size": vocab_size}))
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "text").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    snapshot_model(tmp_path / "m" / "manifest.json", source=f"path:{tmp_path / 'tiny'}")
    snapshot_corpus(tmp_path / "c" / "manifest.json", source=f"path:{tmp_path / 'text'}")
    out = tmp_path / "tokens.h5"
    tokenize_corpus(
        **settings(tmp_path / "m" / "manifest.json", tmp_path / "c" / "manifest.json", out, prompt_length=8)
    )
    return out


def words(*more: str) -> Tokenizer:
    """A word a token, cut at blanks alone; unlike others, it finds special tokens among its words."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "a", "b", "c", *more])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


TEXT = "a b c c b a b b a c a c b a a b c c c a a a b c " * 4
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_a_token_beyond_the_vocabulary_is_refused_with_the_document(tmp_path: Path) -> None:
    said = r"document '1\.txt' holds token 'late' of id 6, beyond the model's vocabulary of 6 \(vocab_size in config.json\)"
    with pytest.raises(ValueError, match=said):
        made(tmp_path, [TEXT, TEXT + "late"], words("late"), vocab_size=6, **NAMES)
    assert not (tmp_path / "tokens.h5").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_fine_where_no_text_shows_it(tmp_path: Path) -> None:
    tokens, _ = read(made(tmp_path, [TEXT], words("late"), vocab_size=6, **NAMES))
    assert tokens.max() < 6


def test_special_tokens_spelled_out_are_refused_where_the_tokenizer_cannot_but_read_them(tmp_path: Path) -> None:
    said = r"document '0\.txt' spells out '</s>', which the tokenizer reads as its special token of id 2: take it out"
    with pytest.raises(ValueError, match=said):
        made(tmp_path, [TEXT + " </s> a"], words(), vocab_size=6, **NAMES)


def test_special_tokens_spelled_out_are_text_where_it_can(tmp_path: Path) -> None:
    """BOS comes first in every prompt and nowhere else, EOS between documents and nowhere else."""
    tokenizer = Tokenizer(BPE(vocab={symbol: number for number, symbol in enumerate(byte_symbols())}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    texts = ["<s> one </s> <s><s> two </s></s>" * 3, "three </s>" * 7]
    tokens, _ = read(made(tmp_path, texts, tokenizer, vocab_size=258, **NAMES | {"unk_token": "</s>"}))
    assert (tokens[:, 0] == 256).all()
    assert (tokens[:, 1:] != 256).all()
    assert (tokens == 257).sum() <= 1
    assert b"</s>" in b"".join(bytes(row[row < 256].tolist()) for row in tokens)


def test_text_outside_the_vocabulary_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "selfrepair"):
        made(tmp_path, [TEXT + "zebra yak", "zebra " + TEXT], words(), vocab_size=6, **NAMES)
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 195 tokens are the unknown token: the vocabulary does not hold that text"
    ]


def test_bytes_that_give_no_token_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    symbols = [symbol for byte, symbol in enumerate(byte_symbols()) if byte != ord("z")]
    tokenizer = Tokenizer(BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    with caplog.at_level(logging.WARNING, "selfrepair"):
        made(tmp_path, [TEXT + "zzz", "z" + TEXT], tokenizer, vocab_size=256, eos_token="</s>")
    assert [record.getMessage() for record in caplog.records] == [
        "4 bytes of the text are in no token: the vocabulary lacks bytes 7a"
    ]


def test_documents_go_to_the_tokenizer_in_calls_of_bounded_size(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the calls hold, the file is the same."""
    tokenize_corpus(**settings(model, corpus, tmp_path / "whole.h5"))
    monkeypatch.setattr(encoding, "CHARACTERS_A_CALL", 90)
    monkeypatch.setattr(encoding, "OVERLAP", 40)
    monkeypatch.setattr(encoding, "LEAST_AGREEMENT", 3)
    tokenize_corpus(**settings(model, corpus, tmp_path / "parts.h5"))
    np.testing.assert_array_equal(read(tmp_path / "parts.h5")[0], read(tmp_path / "whole.h5")[0])


def test_as_many_prompts_as_the_text_holds_may_be_asked_for(tokens_file: Path, tmp_path: Path) -> None:
    check_prompts(tokens=tokens_file, out=tmp_path / "prompts.json", prompts=9)
    assert read_json(tmp_path / "prompts.json") == {"asked": 9, "held": 9}


def test_more_prompts_than_the_text_holds_are_refused(tokens_file: Path, tmp_path: Path) -> None:
    message = (
        r"asks for 12 prompts of 16 tokens; the text holds 9 \(whole shards of 3\): set tokens.prompts to at most 9"
    )
    with pytest.raises(ValueError, match=message):
        check_prompts(tokens=tokens_file, out=tmp_path / "prompts.json", prompts=12)
    assert not (tmp_path / "prompts.json").exists()
