"""What the config asks of a model, held to its config.json and weights before anything is computed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfrepair.files.sealed import write_json
from selfrepair.snapshots.folder import read_config
from selfrepair.snapshots.shapes import shape_differences, shape_of_folder

_LENGTHS = ("max_position_embeddings", "n_positions")
"""What a model's config calls the most tokens that a prompt may have."""

Asked = dict[str, Any]


def check_model(*, model_manifest: Path, model: str, asked: Asked, out: Path) -> None:
    """Check that a model has what the config asks of it, as soon as its snapshot is there.

    Args:
        model_manifest: Of the model snapshot.
        model: The model's name in the config.
        asked: As for `model_problems`.
        out: JSON file, written when all is well.

    Raises:
        ValueError: One line for each thing that the model has not.
    """
    if problems := list(model_problems(asked, model, model_manifest.parent)):
        raise ValueError("; ".join(problems))
    write_json(out, {"asked": asked})


def model_problems(asked: Asked, name: str, folder: Path) -> Iterator[str]:
    """What the config asks of a model that it has not, a line each.

    Args:
        asked: The merged config, or of it ``tokens.prompt_length``, ``ablations``, ``analyses`` and the model's ``shape``.
        name: The model's name in the config.
        folder: Its files.
    """
    try:
        own = read_config(folder, f"models.{name}")
    except ValueError as error:
        yield str(error)
        return
    length = asked["tokens"]["prompt_length"]
    limit = next((own[key] for key in _LENGTHS if isinstance(own.get(key), int)), length)
    if length > limit:
        yield f"tokens.prompt_length is {length}, but {name} takes {limit} tokens at most: lower it"
    shape = shape_of_folder(folder)
    if shape is None:
        return
    named = asked["models"][name].get("shape")
    for difference in shape_differences(named, shape) if named else []:
        yield f"models.{name}.shape {difference}"
    has = f"but {name} has layers 0 to {shape.layers - 1} and heads 0 to {shape.heads - 1}"
    lists = {f"ablations.{kind}.heads": settings["heads"] for kind, settings in asked["ablations"].items()}
    for key, heads in {**lists, "analyses.heads": asked["analyses"]["heads"]}.items():
        if isinstance(heads, list):
            beyond = [pair for pair in heads if pair[0] >= shape.layers or pair[1] >= shape.heads]
            if beyond:
                yield f"{key} names {beyond}, {has}"
    neuron_layer = asked["analyses"]["neuron_layer"]
    if neuron_layer is not None and neuron_layer >= shape.layers:
        yield f"analyses.neuron_layer is {neuron_layer}, {has}"
