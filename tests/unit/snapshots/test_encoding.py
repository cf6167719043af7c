"""Texts to ids: as tokenizer.json says, whole or in windows, no special token out of a text, nothing lost unsaid."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from selfrepair.snapshots import encoding
from selfrepair.snapshots.encoding import Encoder, byte_symbols, read_encoder
from selfrepair.snapshots.pretokenizers import PRE_TOKENIZERS

pytestmark = pytest.mark.filterwarnings("error")

RNG = random.Random(0)


def drawn(pieces: str | list[str], count: int) -> str:
    return "".join(RNG.choice(pieces) for _ in range(count))


PROSE = " ".join(
    f"In {1900 + n} the river's {drawn('abcdeghinorst', 4)} rose by {n * 37} m; it DIDN'T fall.{drawn(['', ' ', chr(10)], 2)}"
    for n in range(90)
)
TEXTS = {
    "prose": PROSE,
    "line ends of Windows": PROSE.replace(". ", ".\r\n\r\n"),
    "runs of blanks": drawn(["a", "b", " ", "   ", "\t", "\n", " " * 17], 3000),
    "blanks alone": " " * 6000,
    "one letter": "a" * 6000,
    "a period of three": "abc" * 2000,
    "letters without a blank": drawn("abcdefghij", 6000),
    "digits": drawn("0123456789", 6000),
    "Chinese without a stop": drawn([chr(code) for code in range(0x4E00, 0x4E40)], 4000),
    "emoji": drawn(["🚀", "😶\u200d🌫️", "👍🏽", "🇫🇷", "🇩🇪", "a "], 2500),
    "combining marks": drawn(["e\u0301", "a\u0308", "n", "o\u0302\u0323", " "], 3000),
    "code": "def f(x):\n    if x:\n        return [x ** 2, {'a': 1}]\n\n" * 110,
}


def byte_level(name: str) -> Tokenizer:
    """Trained on all the texts, cut as the name says."""
    pre = PRE_TOKENIZERS[name]
    steps = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None))
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre.ignore_merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))


def trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator([text[:3000] for text in TEXTS.values()], trainer)
    return tokenizer


def prefixed(prepend: str = "always") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    return trained(tokenizer, BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False))


def uncut() -> Tokenizer:
    """As older Llama files: no cutting at all, a blank's mark put before the whole text."""
    tokenizer = prefixed()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def unigram(split: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    options = {"vocab_size": 600, "unk_token": "<unk>", "special_tokens": ["<unk>"], "show_progress": False}
    trained(tokenizer, UnigramTrainer(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    **{name: lambda name=name: byte_level(name) for name in ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken")},  # type: ignore[misc]
    "Metaspace": prefixed,
    "Metaspace, first": lambda: prefixed("first"),
    "uncut": uncut,
    "unigram": unigram,
    "unigram, uncut": lambda: unigram(split=False),
    "WordPiece": wordpiece,
}


def saved(tokenizer: Tokenizer, folder: Path, **config: object) -> Encoder:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return read_encoder(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_give_what_the_whole_gives(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts of every kind, in windows: the same ids as in one call."""
    monkeypatch.setattr(encoding, "CHARACTERS_A_CALL", 1500)
    monkeypatch.setattr(encoding, "OVERLAP", 150)
    encoder = saved(KINDS[kind](), tmp_path)
    # As the file says: scores of a Unigram model lose their last digits when they are written.
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for name, text in TEXTS.items():
        (found,) = encoder.encode([text])
        wanted = whole.encode(text, add_special_tokens=False).ids
        assert found.dtype == np.int32
        assert found.tolist() == wanted, name


def test_no_call_holds_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one long text nor many short ones reach the library in one call."""
    monkeypatch.setattr(encoding, "CHARACTERS_A_CALL", 1500)
    monkeypatch.setattr(encoding, "OVERLAP", 150)
    encoder = saved(byte_level("gpt-2"), tmp_path)
    calls: list[int] = []

    class Watched:
        def encode(self, text: str, **options: bool) -> object:
            calls.append(len(text))
            return encoder.tokenizer.encode(text, **options)

        def encode_batch_fast(self, texts: list[str], **options: bool) -> object:
            calls.append(sum(map(len, texts)))
            return encoder.tokenizer.encode_batch_fast(texts, **options)

    watched = Encoder.__new__(Encoder)
    for name, value in {"tokenizer": Watched(), "parts": encoder.parts, "bos": None, "eos": None}.items():
        object.__setattr__(watched, name, value)
    texts = [PROSE[:400]] * 20 + [PROSE, ""] + [PROSE[:7]]
    found = [ids.tolist() for ids in watched.encode(texts)]
    assert found == [encoder.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert max(calls) <= 1500
    assert len(calls) > 10


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    """Those that are special are not read out of a text; added ones that are not, are."""
    tokenizer = byte_level("gpt-2")
    tokenizer.add_special_tokens(["<|endoftext|>", "<s>"])
    tokenizer.add_tokens(["<think>"])
    encoder = saved(tokenizer, tmp_path, eos_token="<|endoftext|>", bos_token={"content": "<s>"})
    text = "a <|endoftext|><s>b<think> c"
    assert tokenizer.token_to_id("<s>") in tokenizer.encode(text).ids
    (ids,) = encoder.encode([text])
    assert not set(ids.tolist()) & set(encoder.special)
    assert tokenizer.token_to_id("<think>") in ids
    assert encoder.tokenizer.decode(ids.tolist()) == text
    assert encoder.special == {900: "<|endoftext|>", 901: "<s>"}


def test_truncation_and_padding_of_the_file_lose_and_add_nothing(tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    wanted = [tokenizer.encode(text).ids for text in (PROSE, "short")]
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(pad_id=3, pad_token="a", length=2000)
    found = [ids.tolist() for ids in saved(tokenizer, tmp_path).encode([PROSE, "short"])]
    assert found == wanted


def test_bytes_that_a_vocabulary_lacks_are_known(tmp_path: Path) -> None:
    whole = byte_level("gpt-2")
    assert saved(whole, tmp_path / "whole").lost_bytes == frozenset()
    symbols = {symbol: n for n, symbol in enumerate(byte_symbols()) if n not in (0x41, 0xC3)}
    part = Tokenizer(models.BPE(vocab=symbols, merges=[]))
    part.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = saved(part, tmp_path / "part")
    assert encoder.lost_bytes == {0x41, 0xC3}
    assert next(encoder.encode(["BAB"])).tolist() == [0x42, 0x42]


def test_symbols_of_bytes_are_those_of_the_library() -> None:
    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("aé€🚀\n \t\x00", "¡¬®ÿ\xa0\xad"):
        assert "".join(piece for piece, _ in cut.pre_tokenize_str(text)) == "".join(
            byte_symbols()[b] for b in text.encode()
        )


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model": {"type": "New"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json .*no tokenizer .*remake the snapshot"):
        read_encoder(tmp_path)


def test_a_named_token_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold the eos_token '</s>'"):
        saved(wordpiece(), tmp_path, eos_token="</s>")
