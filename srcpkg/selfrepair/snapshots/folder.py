"""A model's folder, before anything is built from it: what its config, index and safetensors headers say, or why not."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from selfrepair.families import refuse_architecture
from selfrepair.snapshots.names import CONFIG, INDEX, WEIGHTS, is_tokenizer

ADAPTER = "adapter_config.json"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The number formats that weights are read from, by safetensors' name."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SAVE_ANEW = "save the model anew (save_pretrained of transformers)"
_FETCH = f"fetch the file again, or {_SAVE_ANEW}"
SHOWN = 3
"""How many names an error gives before it counts the rest."""


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors header describes it.

    Attributes:
        file: Name of the file that holds it.
        dtype: Number format, by safetensors' name.
        shape: Its dimensions.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def some(names: Collection[str]) -> str:
    """A few of the names, sorted, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def require_model_files(names: Collection[str], what: str, *, tokenizer: bool = True) -> None:
    """Refuse a folder that is no whole model, or more than one, by the names of its files.

    Args:
        names: Names of the folder's files.
        what: The folder in the words of an error message.
        tokenizer: Whether a tokenizer must be there.

    Raises:
        ValueError: With what is missing, or what must be removed.
    """
    has_weights = WEIGHTS in names or INDEX in names
    if ADAPTER in names:
        raise ValueError(
            f"{what} holds an adapter ({ADAPTER}), whose weights are changes to another model's: merge it into that model "
            "(merge_and_unload of peft, then save_pretrained) and use that folder"
        )
    pickles = sorted(name for name in names if name.endswith(_PICKLES) and "/" not in name)
    if not has_weights and pickles:
        raise ValueError(
            f"{what} has only pickle weights ({pickles[0]}): refused, safetensors only; "
            "convert them where you trust them (save_pretrained of transformers writes safetensors) and use path:"
        )
    missing = [] if CONFIG in names else [CONFIG]
    missing += [] if has_weights else [f"{WEIGHTS} (or {INDEX})"]
    missing += [] if not tokenizer or any(is_tokenizer(name) for name in names) else ["a tokenizer (tokenizer.json)"]
    if missing:
        raise ValueError(
            f"{what} lacks {', '.join(missing)}: wanted a whole model as save_pretrained of transformers writes it"
        )


def read_json(path: Path, what: str) -> Any:
    """What a JSON file of a model's folder holds.

    Raises:
        ValueError: It cannot be read, is empty, a Git LFS pointer, not UTF-8 or not JSON.
    """
    require_content(path, what)
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: {path.name} is not UTF-8 ({error.reason}, byte {error.start}): {_FETCH}") from error
    except RecursionError as error:
        raise ValueError(f"{what}: {path.name} is not JSON as models have it (nested too deep): {_FETCH}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {path.name} is not JSON ({error}): {_FETCH}") from error


def require_content(path: Path, what: str) -> None:
    """Refuse a file that cannot be read, is empty, or is the pointer that Git LFS leaves where it fetched no content.

    Raises:
        ValueError: With what to do.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(len(_LFS_POINTER))
    except OSError as error:
        raise unreadable(path.name, what, error) from error
    if not start:
        raise ValueError(f"{what}: {path.name} is empty: {_FETCH}")
    if start == _LFS_POINTER:
        raise ValueError(
            f"{what}: {path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in the folder it came from"
        )


def unreadable(name: str, what: str, error: OSError) -> ValueError:
    """The error for a file that the system does not let us read or copy."""
    return ValueError(
        f"{what}: {name} cannot be read ({error.strerror or error}): check that it is there and its permissions"
    )


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """The config of a model that may be measured; its weights need not be there yet.

    Args:
        folder: Folder with config.json.
        what: The folder in the words of an error message.

    Raises:
        ValueError: It cannot be read or names no architecture; the definitions do not cover the architecture; the
            weights are quantised.
    """
    config = read_json(folder / CONFIG, what)
    if not isinstance(config, dict):
        raise ValueError(f"{what}: {CONFIG} holds a {type(config).__name__}, wanted an object: {_FETCH}")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        got = f"model_type {model_type!r}" if "model_type" in config else "no model_type"
        raise ValueError(
            f"{what}: {CONFIG} has {got}: wanted the config that save_pretrained of transformers writes, which names the "
            "architecture"
        )
    refuse_architecture(model_type, what)
    classes = config.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"{what}: {CONFIG} has architectures {classes!r}: wanted a list of class names; {_FETCH}")
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            raise ValueError(
                f"{what}: {CONFIG} has {key}{f' ({method})' if method else ''}: quantised weights are not measured, since "
                "products with them are not exact; use the unquantised model, or dequantise it and save_pretrained"
            )
    elsewhere = config.get("transformers_weights")
    if elsewhere not in (None, WEIGHTS):
        raise ValueError(
            f"{what}: {CONFIG} takes the weights from {elsewhere!r} (transformers_weights): wanted {WEIGHTS} or {INDEX}; "
            f"{_SAVE_ANEW}"
        )
    return config


def read_shards(folder: Path, names: Collection[str], what: str) -> dict[str, str] | None:
    """The file of each tensor by the folder's index, or None where one file holds all weights.

    Args:
        folder: Folder with the index, if there is one; the weights need not be there yet.
        names: Names of all files of the model, where they come from.
        what: The folder in the words of an error message.

    Raises:
        ValueError: The index cannot be read, names a file outside the folder or one that is not there, or stands beside
            weights that it does not name.
    """
    if INDEX not in names:
        return None
    index = read_json(folder / INDEX, what)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{what}: {INDEX} has no weight_map from tensors to files: {_FETCH}")
    files = set(shards.values())
    foreign = [name for name in files if not re.fullmatch(r"[^/\\]+\.safetensors", name)]
    if foreign:
        raise ValueError(
            f"{what}: {INDEX} names {some(foreign)}: wanted safetensors files in the folder itself; {_SAVE_ANEW}"
        )
    missing = files - set(names)
    if missing:
        raise ValueError(f"{what} lacks {some(missing)}, which its {INDEX} names: complete the folder")
    if WEIGHTS in names and files != {WEIGHTS}:
        raise ValueError(
            f"{what} holds two sets of weights, {WEIGHTS} and the {len(files)} files that {INDEX} names: "
            "remove the one that is not the model's (in a local copy, and use path:)"
        )
    return shards


def read_headers(folder: Path, what: str) -> dict[str, Stored]:
    """Every tensor of a folder's weights, from the safetensors headers alone.

    Raises:
        ValueError: A file is no whole safetensors file, or holds other tensors than the index says.
    """
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    shards = read_shards(folder, names, what)
    if shards is None:
        return _header(folder / WEIGHTS, what)
    found: dict[str, Stored] = {}
    for file in sorted(set(shards.values())):
        tensors = _header(folder / file, what)
        says = {tensor for tensor, name in shards.items() if name == file}
        if tensors.keys() != says:
            raise ValueError(
                f"{what}: {file} holds other tensors than {INDEX} says ({some(tensors.keys() ^ says)}): "
                f"shards and index are of different models; fetch all of them again, or {_SAVE_ANEW}"
            )
        found.update(tensors)
    return found


def _header(path: Path, what: str) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    require_content(path, what)
    found = {}
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                piece = tensors.get_slice(name)
                found[name] = Stored(path.name, piece.get_dtype(), tuple(piece.get_shape()))
    except SafetensorError as error:
        raise ValueError(
            f"{what}: {path.name} is not a readable safetensors file ({error}; damaged or cut short): fetch it again"
        ) from error
    except OSError as error:
        raise unreadable(path.name, what, error) from error
    if not found:
        raise ValueError(f"{what}: {path.name} holds no tensors: {_FETCH}")
    return found
