"""The tokenizer of a snapshot is what the model's own file says: whatever class is named, from GGUF names, from old files."""

import io
import itertools
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from selfrepair.snapshots.encoding import byte_symbols, read_encoder
from selfrepair.snapshots.pretokenizers import PRE_TOKENIZERS, byte_level_bpe
from selfrepair.snapshots.tokenizers import PROOF, settle_tokenizer, write_gguf_tokenizer

from gguf_files import write_fields

pytestmark = pytest.mark.filterwarnings("error")

END = "<|endoftext|>"
LEARNED = [*PROOF, "in 1984 there were 12 cats and 7 dogs.\n\n1985 was  3 times better. It's theirs, they'll say. "] * 3


def bpe(*cuts: pre_tokenizers.PreTokenizer, nfc: bool = False, special: tuple[str, ...] = (END,)) -> Tokenizer:
    """A byte-level BPE tokenizer of 600 tokens that is cut as told."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not any("Split" in str(cut) for cut in cuts))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 600, "special_tokens": list(special), "show_progress": False, "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(LEARNED, BpeTrainer(**options))
    return tokenizer


FILES = {
    "digits one by one": lambda: bpe(pre_tokenizers.Digits(individual_digits=True)),
    "digits one by one, NFC": lambda: bpe(pre_tokenizers.Digits(individual_digits=True), nfc=True),
    "cut at blanks": lambda: bpe(pre_tokenizers.Split(" ", "merged_with_next")),
    "punctuation": lambda: bpe(pre_tokenizers.Punctuation()),
}
CLASSES = (
    *("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "CodeGenTokenizer"),
    *("LlamaTokenizer", "LlamaTokenizerFast", "CohereTokenizer", "PreTrainedTokenizerFast", "NoSuchTokenizer", None),
)


def folder_of(tmp_path: Path, tokenizer: Tokenizer | None, model_type: str = "llama", **config: Any) -> Path:
    """A model folder without weights: config, tokenizer.json, tokenizer_config.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 700}))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return folder


def ids_of(folder: Path, texts: tuple[str, ...] = PROOF) -> list[list[int]]:
    return [ids.tolist() for ids in read_encoder(folder).encode(texts)]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("named", CLASSES)
def test_the_file_runs_whatever_class_is_named(named: str | None, file: str, tmp_path: Path) -> None:
    """Here, and for who loads the snapshot by transformers."""
    tokenizer = FILES[file]()
    folder = folder_of(tmp_path, tokenizer, tokenizer_class=named, bos_token=END, eos_token=END)
    settle_tokenizer(folder, "path:model")
    wanted = [tokenizer.encode(text).ids for text in PROOF]
    assert ids_of(folder) == wanted
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in PROOF] == wanted
    assert (theirs.bos_token, theirs.eos_token) == (END, END)


@pytest.mark.parametrize(
    "model_type", ["gpt2", "gpt_neox", "opt", "phi", "gemma", "mistral", "olmo", "stablelm", "smollm3"]
)
def test_the_file_runs_for_every_type_of_model(model_type: str, tmp_path: Path) -> None:
    """Types for which transformers knows a class of their own; without a class in the file."""
    tokenizer = FILES["digits one by one"]()
    folder = folder_of(tmp_path, tokenizer, model_type, bos_token=END, eos_token=END)
    settle_tokenizer(folder, "path:model")
    wanted = [tokenizer.encode(text).ids for text in PROOF]
    assert ids_of(folder) == wanted
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in PROOF] == wanted


@pytest.mark.parametrize("named", ["Qwen2Tokenizer", "LlamaTokenizerFast"])
def test_where_transformers_insists_on_a_class_it_is_said(
    named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads no class from a Qwen 2 folder. The file runs all the same, and the log says how to load it elsewhere."""
    tokenizer = FILES["punctuation"]()
    folder = folder_of(tmp_path, tokenizer, "qwen2", tokenizer_class=named, eos_token=END)
    with caplog.at_level(logging.WARNING, "selfrepair"):
        settle_tokenizer(folder, "path:model")
    wanted = [tokenizer.encode(text).ids for text in PROOF]
    assert ids_of(folder) == wanted
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("selfrepair")]
    assert "AutoTokenizer makes a Qwen2Tokenizer of it" in said
    theirs = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in PROOF] == wanted


def test_special_tokens_that_only_the_class_knows_are_written_out(tmp_path: Path) -> None:
    """GPT-2 on the hub names none: its class does."""
    folder = folder_of(tmp_path, FILES["punctuation"](), "gpt2", model_max_length=1024)
    settle_tokenizer(folder, "path:model")
    encoder = read_encoder(folder)
    assert encoder.bos == encoder.eos == (END, 0)


def test_special_tokens_of_the_older_file_count_and_defaults_outside_the_vocabulary_do_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, bpe(special=("<end>",)), tokenizer_class="LlamaTokenizer")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<end>", "lstrip": False}}))
    settle_tokenizer(folder, "path:model")
    assert read_encoder(folder).eos == ("<end>", 0)
    assert read_encoder(folder).bos is None


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    def refused(words: str, *, model_type: str = "llama", files: dict[str, Any] | None = None, **config: Any) -> None:
        nonlocal number
        number += 1
        (tmp_path / str(number)).mkdir()
        folder = folder_of(
            tmp_path / str(number), tokenizer, model_type, **{"bos_token": END, "eos_token": END, **config}
        )
        for name, content in (files or {}).items():
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=words) as caught:
            settle_tokenizer(folder, "path:some/model")
        assert "path:some/model" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    number = 0
    tokenizer = FILES["punctuation"]()
    vocabulary = tokenizer.get_vocab()
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    refused(
        r"vocab.json gives '[ab]' the id \d+, tokenizer.json \d+: they are of two tokenizers",
        files={"vocab.json": swapped},
    )
    refused("vocab.json is not JSON", files={"vocab.json": "{"})
    refused("added_tokens.json holds a list, wanted an object", files={"added_tokens.json": []})
    refused(
        "gives '<think>' the id 600, tokenizer.json has no such token", files={"added_tokens.json": {"<think>": 600}}
    )
    entry = {"content": "a", "special": False}
    refused("gives 'a' the id 600, tokenizer.json the id", added_tokens_decoder={"600": entry})
    refused("says add_prefix_space: true, tokenizer.json the contrary", add_prefix_space=True)
    refused("does not hold the eos_token '</s>'", eos_token="</s>")
    large = {"config.json": {"model_type": "llama", "vocab_size": 599}}
    tokenizer.add_special_tokens(["<last>"])
    refused("EOS is token '<last>' of id 600, beyond the model's vocabulary of 599", eos_token="<last>", files=large)
    refused("BOS is token '<last>' of id 600, beyond", bos_token="<last>", files=large)
    tokenizer.model.dropout = 0.1
    refused("has BPE dropout, which gives other tokens at every call")


# Files of older tokenizers.


def by_hand(text: str, name: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> list[int]:
    """Byte-level BPE as its papers put it, slow and apart from every library but `regex`."""
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    pre = PRE_TOKENIZERS[name]
    text = unicodedata.normalize("NFC", text) if pre.nfc else text
    parts = [part for part in regex.split(r"(\p{N})", text) if part] if pre.digits else [text]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = []
    for part in parts:
        for match in regex.finditer(pre.pattern or gpt2, part):
            symbols = [byte_symbols()[byte] for byte in match.group().encode()]
            whole = "".join(symbols)
            if pre.ignore_merges and whole in vocabulary:
                symbols = [whole]
            while len(symbols) > 1:
                pairs = list(itertools.pairwise(symbols))
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                at = pairs.index(best)
                symbols[at : at + 2] = ["".join(best)]
            ids += [vocabulary[symbol] for symbol in symbols]
    return ids


def parts_of(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@pytest.mark.parametrize(
    ("named", "model_type", "name"),
    [
        ("GPT2Tokenizer", "opt", "gpt-2"),
        ("CodeGenTokenizerFast", "phi", "gpt-2"),
        ("Qwen2Tokenizer", "qwen3", "qwen2"),
        (None, "gpt2", "gpt-2"),
    ],
)
def test_vocabulary_and_merges_alone_are_run_as_their_class_was_made(
    named: str | None, model_type: str, name: str, tmp_path: Path
) -> None:
    vocabulary, merges = parts_of(bpe())
    added = {"600": {"content": "<think>", "special": False}}
    names = {"tokenizer_class": named, "bos_token": END, "eos_token": END, "added_tokens_decoder": added}
    folder = folder_of(tmp_path, None, model_type, **names)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settle_tokenizer(folder, "path:model")
    assert ids_of(folder) == [by_hand(text, name, vocabulary, merges) for text in PROOF]
    assert ids_of(folder, ("a<think>a",)) == [[vocabulary["a"], 600, vocabulary["a"]]]


@pytest.mark.parametrize("named", ["RobertaTokenizer", "OwnTokenizer", None])
def test_vocabulary_and_merges_of_an_unknown_class_are_refused(named: str | None, tmp_path: Path) -> None:
    vocabulary, merges = parts_of(bpe())
    folder = folder_of(tmp_path, None, "llama", tokenizer_class=named, bos_token=END, eos_token=END)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges))
    with pytest.raises(ValueError, match="does not tell for sure how texts are cut: save it with save_pretrained"):
        settle_tokenizer(folder, "path:model")


def pieces(folder: Path, name: str = "tokenizer.model", **options: Any) -> None:
    """A SentencePiece model, trained as Llama's was if not said otherwise."""
    written = io.BytesIO()
    llama = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 500}
    kept = {"remove_extra_whitespaces": False, "split_digits": True, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNED), model_writer=written, **{**llama, **kept, **options}
    )
    (folder / name).write_bytes(written.getvalue())


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_pieces_alone_are_run_if_conversion_gives_the_same_ids(tmp_path: Path) -> None:
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = folder_of(tmp_path, None, **names)
    pieces(folder)
    settle_tokenizer(folder, "path:model")
    encode = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode
    texts = tuple(text.lstrip() for text in PROOF)
    assert ids_of(folder, texts) == [encode(text) for text in texts]
    assert read_encoder(folder).bos == ("<s>", 1)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_pieces_that_convert_to_something_else_are_refused_with_both_sets_of_tokens(tmp_path: Path) -> None:
    """Another tokenizer.json beside the pieces; and a normalizer that conversion forgets."""
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = folder_of(tmp_path, None, **names)
    pieces(folder, normalization_rule_name="nmt_nfkc_cf", remove_extra_whitespaces=True)
    words = (
        r"tokenizer.json and tokenizer.model are not the same tokenizer: of '.*' the one gives \[.*\], the other \[.*\]"
    )
    with pytest.raises(ValueError, match=words):
        settle_tokenizer(folder, "path:model")


def test_vocabularies_that_nothing_proves_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None, tokenizer_class="BertTokenizer")
    (folder / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"path:model has no tokenizer\.json, .* cannot be checked: save it with"):
        settle_tokenizer(folder, "path:model")


# GGUF files.


def gguf_file(path: Path, tokenizer: Tokenizer, **changed: Any) -> Path:
    """A GGUF file with a byte-level BPE alone: a user's token of id 600, the rest from the given tokenizer."""
    vocabulary, merges = parts_of(tokenizer)
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "<think>"]
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if token == END else 4 if token == "<think>" else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "add_bos_token": False,
    }
    return write_fields(path, {**fields, **changed})


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_known_name_in_a_gguf_file_is_run_as_by_hand(name: str, tmp_path: Path) -> None:
    tokenizer = bpe(pre_tokenizers.Digits(individual_digits=True)) if PRE_TOKENIZERS[name].digits else bpe()
    vocabulary, merges = parts_of(tokenizer)
    write_gguf_tokenizer(gguf_file(tmp_path / "model.gguf", tokenizer, pre=name), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 601}))
    settle_tokenizer(tmp_path, "package:some")
    assert ids_of(tmp_path) == [by_hand(text, name, vocabulary, merges) for text in PROOF]
    encoder = read_encoder(tmp_path)
    assert encoder.bos == encoder.eos == (END, 0)
    assert encoder.special == {0: END}
    assert ids_of(tmp_path, ("a<think>a",)) == [[vocabulary["a"], 600, vocabulary["a"]]]


def test_the_names_cut_digits_as_their_models_do() -> None:
    vocabulary = {symbol: number for number, symbol in enumerate(byte_symbols())}
    cut = {}
    for name in PRE_TOKENIZERS:
        made = byte_level_bpe(vocabulary, [], name).pre_tokenizer
        assert made is not None
        cut[name] = [piece for piece, _ in made.pre_tokenize_str("a 12345")]
    assert cut["smollm"] == cut["starcoder"] == ["a", "Ġ", "1", "2", "3", "4", "5"]
    assert cut["gpt-2"] == cut["olmo"] == ["a", "Ġ12345"]
    assert cut["llama-bpe"] == ["a", "Ġ", "123", "45"]
    assert cut["qwen2"] == cut["stablelm2"] == cut["tekken"] == ["a", "Ġ", "1", "2", "3", "4", "5"]


UNKNOWN = "how texts are cut before BPE is unknown: tokenizer.ggml.pre"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"pre": None}, f"{UNKNOWN} names none; known are command-r, .* Use path: or hub:"),
    "default": ({"pre": "default"}, f"{UNKNOWN} says 'default'"),
    "unknown name": ({"pre": "smollm9"}, f"{UNKNOWN} says 'smollm9'"),
    **{
        f"kind {kind}": ({"model": kind}, f"its tokenizer is of kind {kind!r}")
        for kind in ("t5", "bert", "rwkv", "gemma4", "none")
    },
    "no kind": ({"model": None}, "its tokenizer is of kind None"),
    "blank before texts": ({"add_space_prefix": True}, "tokenizer.ggml.add_space_prefix is set"),
    "blanks removed": ({"remove_extra_whitespaces": True}, "tokenizer.ggml.remove_extra_whitespaces is set"),
    "no merges": ({"merges": None}, "its tokenizer has no merges"),
    "merges of another": ({"merges": ["a b", "zz zz"]}, "its vocabulary and merges do not fit"),
    "BOS outside": ({"bos_token_id": 601}, "bos_token has id 601, its vocabulary 601 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_gguf_file_leaves_open_is_refused(case: str, tmp_path: Path) -> None:
    changed, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        write_gguf_tokenizer(gguf_file(tmp_path / "model.gguf", bpe(), **changed), tmp_path)
    assert str(caught.value).startswith("model.gguf: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_token_twice_in_a_gguf_file_is_refused(tmp_path: Path) -> None:
    tokens = [*sorted(parts_of(bpe())[0]), "a"]
    with pytest.raises(ValueError, match="its tokenizer has 1 tokens twice"):
        write_gguf_tokenizer(gguf_file(tmp_path / "model.gguf", bpe(), tokens=tokens), tmp_path)
