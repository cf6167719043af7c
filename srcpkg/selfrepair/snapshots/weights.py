"""Whether the weights in a folder are those of the model that its config describes, key for key.

transformers gives random values to whatever it misses and leaves out what it does not know, with a warning at most. Here
both are refused, by the keys of the safetensors headers and by what transformers reports of its own loading.
"""

import logging
import re
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from selfrepair.families import refuse_architecture
from selfrepair.snapshots.folder import FLOATS, Stored, read_config, read_headers, require_model_files, some
from selfrepair.snapshots.names import CONFIG

logger = logging.getLogger(__name__)

_BUFFER = re.compile(r"(?P<module>(?:.*[._])?(?:attn|attention))\.(?P<leaf>bias|masked_bias|rotary_emb\.inv_freq)")
"""What old checkpoints keep though the model computes it: causal masks, the value put where they mask, rotary frequencies."""

_OWN_BUFFER_OFF = 0.01
"""How far, relatively, stored rotary frequencies may be from the config's: rounding to bfloat16 is 0.004."""
_ROWS = 4096
_AT_ONCE = 2**24
"""Numbers that are compared before a file is opened anew; one tensor at least."""
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

_REFUSALS = (ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, struct.error)
"""What transformers raises of configs and files that it cannot make a model of."""


@dataclass
class Faults:
    """How stored tensors differ from a model's own, by name.

    Attributes:
        missing: Parameters of the model that the file does not hold.
        unexpected: Tensors of the file that the model has no place for.
        mismatched: Parameters of another shape, with both shapes.
        doubled: Parameters that several tensors of the file claim, with those.
    """

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    mismatched: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """What is wrong, a few of each kind by name and the rest counted."""
        shapes = [f"{name} {shapes}" for name, shapes in self.mismatched.items()]
        claims = [f"{name} by {' and '.join(claim)}" for name, claim in self.doubled.items()]
        kinds = (
            ("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", shapes), ("given twice", claims),
        )  # fmt: skip
        return "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in kinds if names)

    def report(self, info: dict[str, Any], recomputed: Collection[str] = ()) -> None:
        """Add what transformers reports of its loading (`output_loading_info`), but for tensors that it may leave out."""
        self.missing |= set(info["missing_keys"])
        self.unexpected |= set(info["unexpected_keys"]) - set(recomputed)
        for name, stored, wanted in info["mismatched_keys"]:
            self.mismatched[name] = _shapes(stored, wanted)


def load_checked(folder: Path, what: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model, or only its outline, after checking that the folder's weights are its own.

    Args:
        folder: Folder with config and safetensors.
        what: The folder in the words of an error message.
        **options: Passed to `from_pretrained`. With `device_map="meta"` no weights are read, only the headers.

    Raises:
        ValueError: The weights are not the model's, key for key and shape for shape; or they are no finite
            floating-point numbers; or config or weights cannot be read; or the model holds other numbers than the file.
    """
    require_model_files([entry.name for entry in folder.iterdir()], what, tokenizer=False)
    config = read_config(folder, what)
    stored = read_headers(folder, what)
    _refuse_number_formats(stored, what)
    _refuse_heads(folder, config, what)
    hf, info = _load(
        folder,
        f"{what}: transformers cannot build the model of {CONFIG}",
        use_safetensors=True,
        attn_implementation=_attention_of(config["model_type"]),
        **options,
    )
    classes = config.get("architectures") or []
    _refuse_another_class(hf, classes, own_code="auto_map" in config, what=what)
    faults, recomputed = compare(hf, stored, folder)
    faults.report(info, recomputed)
    refuse_faults(faults, hf, what, classes)
    _refuse_untied(hf, stored, folder, what)
    if recomputed:
        logger.info("%s: left out, since the model computes them itself: %s", what, some(recomputed))
    refuse_not_finite(hf, what)
    _refuse_changed(hf, stored, folder, what)
    return hf


def _attention_of(model_type: str) -> str:
    """Torch's own attention, or the architecture's where it has no other."""
    known = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ""), None)
    return "eager" if known is not None and not known._supports_sdpa else "sdpa"


def _load(folder: Path, failed: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What transformers makes of a folder, and what it reports of that."""
    try:
        return cast(
            tuple[PreTrainedModel, dict[str, Any]],
            AutoModelForCausalLM.from_pretrained(
                folder, ignore_mismatched_sizes=True, output_loading_info=True, **_LOCAL, **options
            ),
        )
    except _REFUSALS as error:
        raise ValueError(f"{failed}: {_reason(error, folder)}") from error


def load_gguf(gguf: Path) -> PreTrainedModel:
    """Load a GGUF file's model in float32, after checking that its tensors are those of the model that it describes.

    Raises:
        ValueError: transformers cannot read it; the definitions do not cover its architecture; the file says more of its
            model than transformers reads; or its tensors are not the model's, key for key.
    """
    unreadable = f"{gguf.name}: transformers cannot read this GGUF file"
    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, **_LOCAL)
    except _REFUSALS as error:
        raise ValueError(f"{unreadable}: {_reason(error, gguf.parent)}") from error
    refuse_architecture(config.model_type, gguf.name)
    _refuse_unread(gguf, config)
    hf, info = _load(gguf.parent, unreadable, gguf_file=gguf.name, dtype=torch.float32)
    faults = Faults(unexpected=_dropped(gguf, hf))
    faults.report(info)
    refuse_faults(faults, hf, gguf.name)
    refuse_not_finite(hf, gguf.name)
    return hf


def _refuse_unread(gguf: Path, config: PreTrainedConfig) -> None:
    """Refuse a file that says of its model what transformers passes over without a word, as it does the scaling of rope."""
    from gguf import GGUFReader
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    fields = GGUFReader(gguf).fields
    architecture = str(fields["general.architecture"].contents())
    mappings: dict[str, Any] = GGUF_CONFIG_MAPPING
    read = mappings.get(architecture) or mappings.get(config.model_type) or {}
    said = {
        name.removeprefix(f"{architecture}."): field.contents()
        for name, field in fields.items()
        if name.startswith(f"{architecture}.")
    }
    # Sizes of a head, which the tensors' shapes prove.
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    unread = {
        key: value
        for key, value in said.items()
        if key not in read and not (key in ("attention.key_length", "attention.value_length") and value == size)
    }
    if unread:
        told = some([f"{key}: {value}" for key, value in unread.items()])
        raise ValueError(
            f"{gguf.name}: transformers leaves out what the file says of its model ({told}), which would make it another "
            "model: use path: or hub: with the model's own safetensors"
        )


def _dropped(gguf: Path, hf: PreTrainedModel) -> set[str]:
    """Tensors of a GGUF file that none of the model's parameters is read from: transformers drops these without a word."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader = GGUFReader(gguf)
    names = {tensor.name for tensor in reader.tensors}
    field = reader.get_field("general.architecture")
    architectures = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    if field is None or field.contents() not in architectures:
        return set()
    places = get_tensor_name_map(architectures[field.contents()], hf.config.num_hidden_layers)
    read = {places.get_name(key, try_suffixes=(".weight", ".bias")) for key in hf.state_dict()}
    return names - read


def compare(hf: PreTrainedModel, stored: dict[str, Stored], folder: Path) -> tuple[Faults, set[str]]:
    """What differs between a model's parameters and stored tensors, whatever transformers chooses to ignore.

    Args:
        hf: The model; its weights are not looked at.
        stored: The tensors by name, as `read_headers` gives them.
        folder: Folder of their files.

    Returns:
        The differences, and the names of stored tensors that the model computes itself.
    """
    own = hf.state_dict()
    claims: dict[str, list[str]] = defaultdict(list)
    faults, converted = Faults(), False
    recomputed: set[str] = set()
    for name, (key, by_converter) in _places(hf, stored).items():
        converted |= by_converter
        if key not in own:
            (recomputed if _is_recomputed(hf, name, stored[name], folder) else faults.unexpected).add(name)
        elif not by_converter:
            claims[key].append(name)
            if stored[name].shape != tuple(own[key].shape):
                faults.mismatched[key] = _shapes(stored[name].shape, own[key].shape)
    faults.doubled = {key: names for key, names in claims.items() if len(names) > 1}
    # What becomes of tensors that are taken apart or put together is left to what transformers reports.
    if not converted:
        faults.missing = own.keys() - claims.keys() - _tied_to(hf, claims)
    return faults, recomputed


def _places(hf: PreTrainedModel, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Where transformers puts each stored tensor: the model's key, and whether the tensor is converted on the way."""
    own = hf.state_dict()
    changes = get_model_conversion_mapping(hf)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    places = {}
    for name in names:
        key, pattern = rename_source_key(name, renamings, converters, hf.base_model_prefix, own)
        if key not in own and name in own:
            key, pattern = rename_source_key(name, [], [], hf.base_model_prefix, own)
        places[name] = (key, pattern is not None)
    return places


def _embeddings(hf: PreTrainedModel) -> set[str]:
    """Names of the token embedding and the unembedding, which a config may tie."""
    wanted = [hf.get_input_embeddings(), hf.get_output_embeddings()]
    return {f"{name}.weight" for name, module in hf.named_modules() if any(module is part for part in wanted)}


def _tied_to(hf: PreTrainedModel, held: Iterable[str]) -> set[str]:
    """Parameters that need not be stored, since the config ties them to one that is."""
    tied = _embeddings(hf) if hf.config.tie_word_embeddings else set()
    return tied if tied & set(held) else set()


def _is_recomputed(hf: PreTrainedModel, name: str, tensor: Stored, folder: Path) -> bool:
    """Whether a stored tensor is a buffer of an attention that the model computes itself, with the value it computes."""
    match = _BUFFER.fullmatch(name)
    if match is None:
        return False
    prefixes = ("", f"{hf.base_model_prefix}.")
    module = match["module"]
    modules = {path for path, _ in hf.named_modules()}
    if not any(prefix + module in modules or module.removeprefix(prefix) in modules for prefix in prefixes):
        return False
    shape = tensor.shape
    if match["leaf"] == "bias":
        causal = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
        return causal and _is_causal_mask(_read(folder, name, tensor)[0, 0])
    if match["leaf"] == "masked_bias":
        return tensor.size == 1 and float(_read(folder, name, tensor)) <= -1e4
    return len(shape) == 1 and _are_frequencies(hf, _read(folder, name, tensor))


def _read(folder: Path, name: str, tensor: Stored) -> Tensor:
    with safe_open(folder / tensor.file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _is_causal_mask(mask: Tensor) -> bool:
    return bool(torch.equal(mask != 0, torch.ones(mask.shape, dtype=torch.bool).tril()))


def _are_frequencies(hf: PreTrainedModel, stored: Tensor) -> bool:
    """Whether stored rotary frequencies are those of the config, before any scaling of them."""
    rope = getattr(hf.config, "rope_parameters", None) or {}
    lengths = {len(buffer) for name, buffer in hf.named_buffers() if name.endswith("inv_freq")}
    if "rope_theta" not in rope or len(stored) not in lengths:
        return False
    steps = torch.arange(len(stored), dtype=torch.float64) / len(stored)
    wanted = float(rope["rope_theta"]) ** -steps
    factor = float(rope.get("factor") or 1.0) if rope.get("rope_type") == "linear" else 1.0
    # float16 holds no number between 0 and 6e-8.
    return any(
        torch.allclose(stored.double(), frequencies, rtol=_OWN_BUFFER_OFF, atol=1e-7)
        for frequencies in (wanted, wanted / factor)
    )


def _refuse_another_class(hf: PreTrainedModel, classes: list[str], *, own_code: bool, what: str) -> None:
    """Refuse a config whose class is another model than its model_type, or one of code that is never run."""
    named = [getattr(transformers, name, None) for name in classes]
    kinds = {getattr(getattr(kind, "config_class", None), "model_type", None) for kind in named if kind is not None}
    if not classes or hf.config.model_type in kinds or type(hf).__name__.casefold() in map(str.casefold, classes):
        return
    if kinds:
        raise ValueError(
            f"{what}: {CONFIG} says model_type {hf.config.model_type}, but its architectures name {some(classes)}, which is "
            f"another model: take the {CONFIG} that was saved with these weights"
        )
    if own_code:
        raise ValueError(
            f"{what}: {CONFIG} says that the model is {some(classes)}, whose code comes with it (auto_map) and is never run: "
            "take a version of the model that transformers knows itself"
        )


def refuse_faults(faults: Faults, hf: PreTrainedModel, what: str, classes: Collection[str] = ()) -> None:
    """Refuse weights that are not the model's.

    Args:
        faults: What differs.
        hf: The model, of the class that was wanted.
        what: The folder or file in the words of an error message.
        classes: The classes that its config names.

    Raises:
        ValueError: With a few names of each kind, and what to do.
    """
    if not str(faults):
        return
    remedy = "config and weights are of two models, or one of them is not whole; take both from one saved model"
    if classes and type(hf).__name__ not in classes:
        remedy = f"{CONFIG} says that they are a {some(classes)}; wanted a causal language model with its unembedding"
    elif faults.missing and not faults.unexpected and faults.missing <= _embeddings(hf):
        remedy = (
            "a model saved without its unembedding (as embedding models are) predicts no tokens; take the whole model"
        )
    raise ValueError(
        f"{what}: the weights are not those of the {type(hf).__name__} that its config describes, {faults}: {remedy}"
    )


def _refuse_untied(hf: PreTrainedModel, stored: dict[str, Stored], folder: Path, what: str) -> None:
    """Refuse an unembedding that is stored with other values than the embedding that the config ties it to."""
    if not hf.config.tie_word_embeddings:
        return
    embeddings = _embeddings(hf)
    held = [name for name, (key, _) in _places(hf, stored).items() if key in embeddings]
    if len(held) < 2 or _equal(folder, *((name, stored[name]) for name in held)):
        return
    raise ValueError(
        f"{what}: {CONFIG} ties the unembedding to the embedding (tie_word_embeddings), but {' and '.join(sorted(held))} "
        "differ: set tie_word_embeddings to false if both are the model's, else remove the tensor that is not"
    )


def _equal(folder: Path, first: tuple[str, Stored], second: tuple[str, Stored]) -> bool:
    """Whether two stored tensors are the same, read a few rows at a time."""
    with (
        safe_open(folder / first[1].file, framework="pt") as one,
        safe_open(folder / second[1].file, framework="pt") as two,
    ):
        left, right = one.get_slice(first[0]), two.get_slice(second[0])
        starts = range(0, first[1].shape[0], _ROWS)
        return all(torch.equal(left[at : at + _ROWS], right[at : at + _ROWS]) for at in starts)


def _refuse_number_formats(stored: dict[str, Stored], what: str) -> None:
    """Refuse weights that are numbers only together with scales or tables."""
    wrong = {
        name: tensor.dtype
        for name, tensor in stored.items()
        if tensor.dtype not in FLOATS and not _BUFFER.fullmatch(name)
    }
    if wrong:
        raise ValueError(
            f"{what}: {len(wrong)} tensors are {', '.join(sorted(set(wrong.values())))} ({some(wrong)}), wanted "
            f"{', '.join(FLOATS.values())}: quantised weights mean nothing without their scales; take the unquantised model"
        )


def _refuse_heads(folder: Path, raw: dict[str, Any], what: str) -> None:
    """Refuse a config whose heads do not divide what they share, which fails late or not at all."""
    try:
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # validators of configs raise what they like
        raise ValueError(f"{what}: {CONFIG} describes no model: {_reason(error, folder)}; correct it") from error
    heads = config.num_attention_heads
    pairs = [] if raw.get("head_dim") else [("hidden_size", config.hidden_size, "num_attention_heads", heads)]
    groups = getattr(config, "num_key_value_heads", None)
    pairs += [] if groups is None else [("num_attention_heads", heads, "num_key_value_heads", groups)]
    for whole_name, whole, part_name, part in pairs:
        if not (isinstance(part, int) and isinstance(whole, int) and part > 0 and whole > 0 and whole % part == 0):
            raise ValueError(
                f"{what}: {CONFIG} has {whole_name} {whole}, not a multiple of {part_name} {part}: take the {CONFIG} that "
                "was saved with these weights"
            )


def _refuse_changed(hf: PreTrainedModel, stored: dict[str, Stored], folder: Path, what: str) -> None:
    """Refuse a model whose weights are other numbers than the file's, but for those that are converted on the way.

    Some architectures set the padding token's row to zero when they are loaded; it is put back, as other models keep it.
    """
    own = hf.state_dict()
    padded = {
        f"{name}.weight": module.padding_idx
        for name, module in hf.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }
    by_file: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, (key, by_converter) in _places(hf, stored).items():
        if key in own and not by_converter and not own[key].is_meta:
            by_file[stored[name].file].append((name, key))
    changed = []
    for file, names in by_file.items():
        for some_names in _in_parts(names, stored):
            with safe_open(folder / file, framework="pt") as tensors, torch.no_grad():
                for name, key in some_names:
                    held = tensors.get_tensor(name).to(own[key])
                    if key in padded and not own[key][padded[key]].any():
                        own[key][padded[key]] = held[padded[key]]
                    if not torch.equal(own[key], held):
                        changed.append(name)
                    del held
    if changed:
        raise ValueError(
            f"{what}: {len(changed)} weights are other numbers in the model than in the file ({some(changed)}): transformers "
            "changes them when it loads this architecture, so that it is another model; please report it with the config"
        )


def _in_parts(names: list[tuple[str, str]], stored: dict[str, Stored]) -> Iterator[list[tuple[str, str]]]:
    """Tensors of a file in parts of bounded size: an open file counts as memory as far as it has been read."""
    part: list[tuple[str, str]] = []
    size = 0
    for name, key in names:
        if part and size + stored[name].size > _AT_ONCE:
            yield part
            part, size = [], 0
        part.append((name, key))
        size += stored[name].size
    if part:
        yield part


def refuse_not_finite(hf: PreTrainedModel, what: str) -> None:
    """Refuse weights that are infinite or no number; what is on the meta device has no values to look at.

    Raises:
        ValueError: With the names of a few.
    """
    # A sum is not finite if any term is not; only then each is looked at.
    wrong = [
        name
        for name, weight in hf.named_parameters()
        if not weight.is_meta and not bool(weight.detach().sum().isfinite()) and not bool(weight.isfinite().all())
    ]
    if wrong:
        raise ValueError(
            f"{what}: {len(wrong)} weights hold infinite values or NaN ({some(wrong)}): the file is damaged, or training "
            "diverged; take another copy or an earlier checkpoint"
        )


def _shapes(stored: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{list(stored)}, wanted {list(wanted)}"


def _reason(error: Exception, folder: Path) -> str:
    """What an exception says, in one line, without the folder's path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2] or [type(error).__name__]).replace(str(folder), "the folder")[:300].rstrip(".")
