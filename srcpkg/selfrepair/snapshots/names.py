"""Names of a model folder's files: which ones transformers reads."""

import json
from collections.abc import Collection
from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PLAIN_FILES = {
    CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "chat_template.jinja", "chat_template.json",
}  # fmt: skip
_VOCABULARIES = {
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
}  # fmt: skip


def model_file_names(names: Collection[str], shards: Collection[str] = ()) -> list[str]:
    """Of a model folder's file names, those that transformers reads: config, safetensors and tokenizer, sorted.

    Sharded weights go by their index; other weights in the folder (copies in another precision or format) are left out.

    Args:
        names: Names of the folder's files.
        shards: Names of the files of weights by the folder's index, if it has one.
    """
    kept = {name for name in names if name in _PLAIN_FILES or is_tokenizer(name)}
    if INDEX in names:
        kept |= {INDEX} | (set(shards) & set(names))
    elif WEIGHTS in names:
        kept.add(WEIGHTS)
    return sorted(kept)


def named_shards(folder: Path) -> set[str]:
    """The files that a model folder's index names; none where it has no index, or one that the snapshot will refuse."""
    try:
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return {name for name in shards if isinstance(name, str)}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return set()


def is_tokenizer(name: str) -> bool:
    """Whether the file `name` holds a tokenizer's vocabulary."""
    return name in _VOCABULARIES or ("/" not in name and name.endswith(".tiktoken"))
