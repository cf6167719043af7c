"""Sizes of a model: what its costs are computed from, read from its config and the headers of its weights, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from selfrepair.families import FAMILIES
from selfrepair.snapshots.folder import read_config, read_headers
from selfrepair.snapshots.names import CONFIG

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CLOSE = 0.02
"""How far, relatively, the weights that ``shape`` of the config implies may be from those that are there: biases and norms."""

_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "vocabulary": ("vocab_size",),
}
"""What every config says, by the names that architectures give it."""
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_D_HEAD = ("v_head_dim", "head_dim")
_D_MLP = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        layers: Decoder layers.
        heads: Query heads a layer.
        kv_heads: Key-value heads a layer.
        d_model: Width of the residual stream.
        d_head: Width of a head's ``z``.
        d_mlp: Neurons of an MLP; of all experts that a mixture holds, one.
        vocabulary: Tokens of the unembedding.
        parameters: Weights of the whole model.
        layer_parameters: Weights of the linear maps of a layer, on average.
        mlp_parameters: Those of them that are the MLP's.
        largest: Weights of the largest tensor.
        stored_bytes: What the files of weights take.
        parallel: Attention and MLP of a layer read the same residual.
    """

    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    parameters: int
    layer_parameters: int
    mlp_parameters: int
    largest: int
    stored_bytes: int
    parallel: bool

    @property
    def width(self) -> int:
        """Numbers of all heads' ``z`` a token and layer."""
        return self.heads * self.d_head

    @property
    def attention_parameters(self) -> int:
        """Weights of the linear maps of a layer's attention."""
        return self.layer_parameters - self.mlp_parameters


def shape_of_settings(shape: Mapping[str, Any]) -> Shape:
    """The sizes that a model's ``shape`` in the config names; weights that it cannot know of (biases, norms) are left out.

    Args:
        shape: As config/config.schema.yaml describes it.
    """
    d_model, heads = shape["d_model"], shape["heads"]
    kv_heads, d_head = shape.get("kv_heads", heads), shape.get("d_head", d_model // heads)
    attention = 2 * d_model * d_head * (heads + kv_heads)
    mlp = (3 if shape.get("gated") else 2) * d_model * shape["d_mlp"]
    embedding = shape["vocabulary"] * d_model
    parameters = (1 if shape.get("tied") else 2) * embedding + shape["layers"] * (attention + mlp)
    return Shape(
        layers=shape["layers"],
        heads=heads,
        kv_heads=kv_heads,
        d_model=d_model,
        d_head=d_head,
        d_mlp=shape["d_mlp"],
        vocabulary=shape["vocabulary"],
        parameters=parameters,
        layer_parameters=attention + mlp,
        mlp_parameters=mlp,
        largest=embedding,
        stored_bytes=(4 if shape.get("stored", "float32") == "float32" else 2) * parameters,
        parallel=bool(shape.get("parallel")),
    )


def shape_of_folder(folder: Path) -> Shape | None:
    """The sizes of the model in a folder; None where there is none, or one that its snapshot will refuse.

    Read once for each state of the folder's files.
    """
    try:
        state = tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()))
    except OSError:
        return None
    return _shape_of_folder(folder, state)


def every_head(folder: Path) -> list[list[int]] | None:
    """All (layer, head) pairs of the model in a folder; None as `shape_of_folder`."""
    shape = shape_of_folder(folder)
    return None if shape is None else [[layer, head] for layer in range(shape.layers) for head in range(shape.heads)]


@cache
def _shape_of_folder(folder: Path, _state: tuple[tuple[str, int], ...]) -> Shape | None:
    if not (folder / CONFIG).is_file():
        return None
    try:
        config = read_config(folder, str(folder))
        stored = read_headers(folder, str(folder))
    except (ValueError, OSError):
        return None
    sizes = {name: _first(config, keys) for name, keys in _KEYS.items()}
    if None in sizes.values():
        return None
    known = {name: int(size) for name, size in sizes.items() if size is not None}
    layers, heads, d_model = known["layers"], known["heads"], known["d_model"]
    # Causal masks of old files, which are left out, have four dimensions; biases and norms have one.
    weights = {name: tensor for name, tensor in stored.items() if len(tensor.shape) < 4}
    of_layers = {
        name: tensor.size
        for name, tensor in weights.items()
        if len(tensor.shape) > 1 and any(part.isdigit() for part in name.split("."))
    }
    family = FAMILIES.get(config["model_type"])
    parallel = family is not None and bool(config.get(family.parallel_option or "", family.parallel))
    return Shape(
        **known,
        kv_heads=1 if config.get("multi_query") else int(_first(config, _KV_HEADS) or heads),
        d_head=int(_first(config, _D_HEAD) or d_model // heads),
        d_mlp=int(_first(config, _D_MLP) or 4 * d_model),
        parameters=sum(tensor.size for tensor in weights.values()),
        layer_parameters=sum(of_layers.values()) // layers,
        mlp_parameters=sum(size for name, size in of_layers.items() if "att" not in name) // layers,
        largest=max(tensor.size for tensor in weights.values()),
        stored_bytes=sum(tensor.size * _BYTES.get(tensor.dtype, 4) for tensor in weights.values()),
        parallel=parallel,
    )


def shape_differences(named: Mapping[str, Any], found: Shape) -> list[str]:
    """How a model differs from the ``shape`` that the config gives it, one line or none.

    Args:
        named: ``shape`` of the config.
        found: The model's own.
    """
    wanted = shape_of_settings(named)
    names = ("layers", "heads", "kv_heads", "d_model", "d_head", "d_mlp", "vocabulary", "parallel")
    differing = [name for name in names if getattr(wanted, name) != getattr(found, name)]
    if not differing and abs(wanted.parameters - found.parameters) > _CLOSE * found.parameters:
        differing = ["parameters"]
    told = [" and ".join(f"{name} {getattr(of, name)}" for name in differing) for of in (wanted, found)]
    remedy = "gated, tied" if differing == ["parameters"] else ", ".join(differing)
    return [f"is {told[0]}, but the model has {told[1]}: correct {remedy}"] if differing else []


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of some keys that a config gives a number."""
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)
