"""The tokenizer of a model snapshot: one tokenizer.json that says all, made and checked when the snapshot is taken."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from selfrepair.snapshots.encoding import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Encoder,
    check_vocabulary,
    model_vocabulary,
    read_encoder,
)
from selfrepair.snapshots.names import CONFIG
from selfrepair.snapshots.pieces import Pieces, piece_tokenizer, read_pieces, sentencepiece_model
from selfrepair.snapshots.pretokenizers import PRE_TOKENIZERS, byte_level_bpe

logger = logging.getLogger(__name__)

VOCABULARY, MERGES = "vocab.json", "merges.txt"
_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_PLAIN_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that runs a tokenizer.json as it is."""

_SLOW_CLASSES = {"GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
_SLOW_MODELS = {"gpt2": "gpt-2", "opt": "gpt-2", "phi": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
"""What vocab.json and merges.txt are cut by, after the class of the tokenizer, or the model's type where none is named."""

_SAVE = "save it with save_pretrained of transformers as a tokenizer.json that you have checked, and use path:"

PROOF = (
    "In 1984, 12 cats and 3.14 dogs; 1,000,000 of them. 007",
    "two  blanks,   three,    four. \ttab\t\ttabs ",
    " leading blank and trailing blank ",
    "line\nbreak\n\nparagraph\n\n\n  indented\r\nwindows\r\n\r\n",
    "def f(x):\n    if x != 0:\n        return [x ** 2, {'a': \"b\"}]  # it's\n\n\nf(10)\n",
    '<div class="a">x &amp; y</div> /* c */ //d $e @f #g 50% a_b-c~d `h` ^i |j| \\k',
    "I'm, you're, HE'S, WE'LL, 'tis, can't, Don'T; O'Neil's ’s",
    "!!! ?!... ------ ====== (((nested))) «» „quotes“ …",
    "naïve café, cafe\u0301, Ångström, straße, ǅ, ﬁne, x², ½, Ⅷ, ٤٥",
    "Привет, мир! Ελληνικά, σήμερα.",
    "我想在apple工作1314151天～ こんにちは、世界。 안녕하세요",
    "مرحبا بالعالم שלום नमस्ते สวัสดี កាន់",
    "🚀 (rocket) 😶\u200d🌫\ufe0f ✅ 🇫🇷 👍🏽🦙🦙 ❤\ufe0f",
    "a\u00a0b\u2003c\u200bd\u2028e\u3000f",
)
"""Texts on which two tokenizers that differ in what they cut, normalize or fall back on give other tokens."""


def settle_tokenizer(folder: Path, source: str) -> None:
    """Make the folder's tokenizer.json the tokenizer, whoever loads the folder, or refuse it.

    A folder that has none gets one, if what it has proves it. The class that tokenizer_config.json names is replaced by the
    one that runs tokenizer.json as it is, since others put parts of their own in its place; the special tokens that the
    class would give are written out.

    Args:
        folder: A model folder, with its config.
        source: As the user wrote it, for errors.

    Raises:
        ValueError: What the folder's files say of the tokenizer is unknown, or they contradict each other.
    """
    config = _read_json(folder / TOKENIZER_CONFIG, source)
    if not (folder / TOKENIZER).is_file():
        _make_tokenizer(folder, config, source)
    special = _special_tokens(folder, config, source)
    plain = {key: value for key, value in config.items() if key not in (*_NAMED, "auto_map")}
    _write_json(folder / TOKENIZER_CONFIG, {**plain, **special, "tokenizer_class": _PLAIN_CLASS})
    encoder = _read(folder, source)
    _check_file(encoder, source)
    _check_named_options(encoder, folder, config, source)
    _check_added_tokens(encoder, folder, config, source)
    _check_other_files(encoder, folder, source)
    check_vocabulary(encoder, model_vocabulary(folder), source)
    _compare_with_transformers(encoder, folder, source)


def write_gguf_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the tokenizer that a GGUF file describes.

    Args:
        gguf: The file.
        folder: Gets tokenizer.json and tokenizer_config.json.

    Raises:
        ValueError: The file describes a tokenizer of an unknown kind, or one that contradicts itself.
    """
    fields = _gguf_fields(gguf)
    kind = fields.get("model")
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            f"{gguf.name}: its tokenizer is of kind {kind!r} (tokenizer.ggml.model), only byte-level BPE ('gpt2') and "
            "SentencePiece's BPE ('llama') can be told from a GGUF file for sure: use path: or hub: with the model's own "
            "safetensors and tokenizer"
        )
    config = _gguf_config(gguf, fields)
    pieces = read_pieces(gguf.name, fields) if kind == "llama" else None
    if pieces is None:
        tokenizer = _gguf_bpe(gguf, fields)
    else:
        tokenizer = piece_tokenizer(pieces, config["bos_token"] if config.get("add_bos_token") else None)
    tokenizer.save(str(folder / TOKENIZER))
    _write_json(folder / TOKENIZER_CONFIG, config)
    if pieces is not None:
        _prove_pieces(pieces, folder, gguf.name)
    if "chat_template" in fields:
        (folder / "chat_template.jinja").write_text(fields["chat_template"], encoding="utf-8")


def _gguf_config(gguf: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says: the special tokens, and which of them stand around a text."""
    tokens = fields.get("tokens") or []
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config: dict[str, Any] = {"tokenizer_class": _PLAIN_CLASS}
    for name, key in ids.items():
        number = fields.get(f"{key}_token_id")
        if number is not None and not 0 <= number < len(tokens):
            raise ValueError(
                f"{gguf.name}: {name} has id {number}, its vocabulary {len(tokens)} tokens: the file is wrong"
            )
        config[name] = None if number is None else tokens[number]
    for key in ("add_bos_token", "add_eos_token"):
        if key in fields:
            config[key] = fields[key]
    return config


def _prove_pieces(pieces: Pieces, folder: Path, name: str) -> None:
    """Hold what was made of pieces against SentencePiece itself."""
    from sentencepiece import SentencePieceProcessor

    encode = SentencePieceProcessor(model_proto=sentencepiece_model(pieces)).encode
    difference = _difference(read_encoder(folder), encode, PROOF)
    if difference:
        raise ValueError(
            f"{name}: its tokenizer cannot be run as SentencePiece runs it: {difference}. Use path: or hub: with the model's "
            "own safetensors and tokenizer"
        )


def _gguf_fields(gguf: Path) -> dict[str, Any]:
    """What the file says of its tokenizer, by the last part of each name."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    return {
        name.removeprefix("tokenizer.").removeprefix("ggml."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }


def _gguf_bpe(gguf: Path, fields: dict[str, Any]) -> Tokenizer:
    name = fields.get("pre")
    if name not in PRE_TOKENIZERS:
        said = "names none" if name is None else f"says {name!r}"
        raise ValueError(
            f"{gguf.name}: how texts are cut before BPE is unknown: tokenizer.ggml.pre {said}; known are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}. Use path: or hub: with the model's own safetensors and tokenizer"
        )
    for key in ("add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap", "normalizer.lowercase"):
        if fields.get(key):
            raise ValueError(
                f"{gguf.name}: tokenizer.ggml.{key} is set, which byte-level BPE does not know: use path: or hub: with the "
                "model's own safetensors and tokenizer"
            )
    tokens, merges = fields["tokens"], fields.get("merges")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if merges is None or len(vocabulary) < len(tokens):
        what = "no merges" if merges is None else f"{len(tokens) - len(vocabulary)} tokens twice"
        raise ValueError(f"{gguf.name}: its tokenizer has {what}: fetch it again, or use the model's own files")
    pairs = [_pair(merge) for merge in merges]
    tokenizer = _building(gguf.name, lambda: byte_level_bpe(vocabulary, pairs, name))
    types = fields.get("token_type") or []
    # llama.cpp: 3 is a control token, 4 one that the user defined, which texts are searched for.
    for number, special in ((3, True), (4, False)):
        tokenizer.add_tokens(
            [
                AddedToken(t, special=special, normalized=False)
                for t, kind in zip(tokens, types, strict=False)
                if kind == number
            ]
        )
    if tokenizer.get_vocab_size() != len(tokens):
        raise ValueError(f"{gguf.name}: its {len(tokens)} tokens make a vocabulary of {tokenizer.get_vocab_size()}")
    return tokenizer


def _make_tokenizer(folder: Path, config: dict[str, Any], source: str) -> None:
    """Write tokenizer.json after the files that older tokenizers have in its place."""
    pieces = [name for name in _PIECES if (folder / name).is_file()]
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        tokenizer = _from_merges(folder, config, source)
    elif pieces:
        # What it gives is held against the pieces' own library by _check_other_files.
        tokenizer = _loaded(folder, source).backend_tokenizer
    else:
        raise ValueError(f"{source} has no {TOKENIZER}, and what it has in its place cannot be checked: {_SAVE}")
    tokenizer.save(str(folder / TOKENIZER))


def _from_merges(folder: Path, config: dict[str, Any], source: str) -> Tokenizer:
    model = _read_json(folder / CONFIG, source)
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = _SLOW_CLASSES.get(named.removesuffix("Fast")) if named else _SLOW_MODELS.get(model.get("model_type", ""))
    if name is None:
        raise ValueError(
            f"{source} has {VOCABULARY} and {MERGES} without {TOKENIZER}, and its class {named!r} does not tell for sure how "
            f"texts are cut: {_SAVE}"
        )
    vocabulary = _read_json(folder / VOCABULARY, source)
    lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = [_pair(line) for line in lines if line.strip()]
    prefix = bool(config.get("add_prefix_space"))
    tokenizer = _building(source, lambda: byte_level_bpe(vocabulary, pairs, name, prefix))
    for number, token in sorted(_added_tokens(folder, config, source).items()):
        if token.special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise ValueError(
                f"{source}: its files give the added token {token.content!r} the id {number}, after {VOCABULARY} it has "
                f"{tokenizer.token_to_id(token.content)}: {_SAVE}"
            )
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    first, _, second = merge.rstrip("\r").partition(" ")
    return first, second


def _building(name: str, build: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return build()
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ValueError(
            f"{name}: its vocabulary and merges do not fit ({_first_line(error)}): fetch it again"
        ) from error


def _added_tokens(folder: Path, config: dict[str, Any], source: str) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary, by the id that tokenizer_config.json or added_tokens.json gives them."""
    found = {
        number: AddedToken(content, normalized=True, special=False)
        for content, number in _read_json(folder / "added_tokens.json", source).items()
    }
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        keys = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        found[int(number)] = AddedToken(**{key: entry[key] for key in keys if key in entry})
    return found


def _special_tokens(folder: Path, config: dict[str, Any], source: str) -> dict[str, Any]:
    """BOS, EOS and the like, as the files name them; else those of the class, if the vocabulary has them."""
    legacy = _read_json(folder / SPECIAL_TOKENS_MAP, source)
    named = {key: config.get(key, legacy.get(key)) for key in _NAMED if key in config or key in legacy}
    if not {"bos_token", "eos_token"} <= set(named):
        loaded = _loaded(folder, source)
        known = Tokenizer.from_file(str(folder / TOKENIZER)).token_to_id
        for key in _NAMED:
            token = getattr(loaded, key)
            if key not in named and token is not None and known(str(token)) is not None:
                named[key] = str(token)
    return named


def _check_file(encoder: Encoder, source: str) -> None:
    if encoder.parts["model"].get("dropout"):
        raise ValueError(
            f"{source}: {TOKENIZER} has BPE dropout, which gives other tokens at every call: set its model.dropout to null"
        )


def _check_named_options(encoder: Encoder, folder: Path, config: dict[str, Any], source: str) -> None:
    """In transformers 4 the class's options overrule the file; which of the two the model saw cannot be told."""
    wanted = config.get("add_prefix_space")
    pre = encoder.parts["pre_tokenizer"] or {}
    steps = [pre, *pre.get("pretokenizers", [])]
    given = [step["add_prefix_space"] for step in steps if step.get("type") == "ByteLevel"]
    if isinstance(wanted, bool) and given and wanted != any(given):
        raise ValueError(
            f"{source}: {TOKENIZER_CONFIG} says add_prefix_space: {str(wanted).lower()}, {TOKENIZER} the contrary: make the "
            "two agree on what the model was trained with"
        )


def _check_added_tokens(encoder: Encoder, folder: Path, config: dict[str, Any], source: str) -> None:
    """Tokens that texts are searched for must be in tokenizer.json too, or texts hold others without them."""
    for number, token in _added_tokens(folder, config, source).items():
        held = encoder.tokenizer.token_to_id(token.content)
        if held != number and not token.special:
            raise ValueError(
                f"{source}: {TOKENIZER_CONFIG} or added_tokens.json gives {token.content!r} the id {number}, {TOKENIZER} "
                f"{'has no such token' if held is None else f'the id {held}'}: save both anew with save_pretrained"
            )


def _check_other_files(encoder: Encoder, folder: Path, source: str) -> None:
    """Older files that lie beside tokenizer.json must say the same."""
    if (folder / VOCABULARY).is_file():
        held = encoder.tokenizer.get_vocab()
        for token, number in _read_json(folder / VOCABULARY, source).items():
            if held.get(token) != number:
                raise ValueError(
                    f"{source}: {VOCABULARY} gives {token!r} the id {number}, {TOKENIZER} {held.get(token)}: they are of two "
                    "tokenizers; keep the files of the one that the model was trained with"
                )
    for name in _PIECES:
        if (folder / name).is_file():
            pieces = _sentencepiece(folder / name, source)
            # A blank before the whole text is the one place where sound conversions differ (Metaspace adds no second).
            difference = pieces and _difference(encoder, pieces, [text.lstrip() for text in PROOF])
            if difference:
                raise ValueError(
                    f"{source}: {TOKENIZER} and {name} are not the same tokenizer: {difference}. Keep the one that the model "
                    "was trained with"
                )


def _sentencepiece(path: Path, source: str) -> Callable[[str], list[int]] | None:
    """The encoder that the file is for; None where it holds none of the library's models (but tiktoken's ranks)."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(path)).encode
    except (RuntimeError, OSError) as error:
        logger.info("%s: %s is no SentencePiece model (%s); it is not compared", source, path.name, error)
        return None


def _difference(encoder: Encoder, other: Callable[[str], list[int]], texts: Sequence[str]) -> str | None:
    """Of the first text that two tokenizers give other ids for, where they part; None if they are the same."""
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        wanted = list(other(text))
        if ids.tolist() != wanted:
            shown = [[encoder.tokenizer.id_to_token(n) for n in numbers] for numbers in _where(ids.tolist(), wanted)]
            return f"of {text!r} the one gives {shown[0]}, the other {shown[1]}"
    return None


def _where(ours: list[int], theirs: list[int], around: int = 6) -> tuple[list[int], list[int]]:
    """The two from shortly before they part."""
    first = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    part = slice(max(0, first - 1), first + around)
    return ours[part], theirs[part]


def _compare_with_transformers(encoder: Encoder, folder: Path, source: str) -> None:
    """Say so where transformers makes another tokenizer of the snapshot, which the workflow itself never runs."""
    loaded = _loaded(folder, source)
    difference = _difference(encoder, lambda text: loaded(text, add_special_tokens=False)["input_ids"], PROOF)
    if difference:
        logger.warning(
            "%s: AutoTokenizer makes a %s of it and not what its %s says (%s). Prompts are made by %s; elsewhere load it "
            "with %s",
            *(source, type(loaded).__name__, TOKENIZER, difference, TOKENIZER, _PLAIN_CLASS),
        )


def _loaded(folder: Path, source: str) -> Any:
    """The folder's tokenizer as transformers makes it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = _first_line(error).replace(str(folder), source)
        raise ValueError(f"{source}: transformers cannot read its config or tokenizer: {reason}") from error


def _read(folder: Path, source: str) -> Encoder:
    try:
        return read_encoder(folder)
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder / TOKENIZER), f"{source}: {TOKENIZER}")) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_json(path: Path, source: str) -> dict[str, Any]:
    """The object of a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: {path.name} is not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source}: {path.name} holds a {type(content).__name__}, wanted an object")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
