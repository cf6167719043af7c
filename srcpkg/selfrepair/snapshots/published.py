"""Which models the published values are of (resources/published/models.json), and whether a model is one of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfrepair.files.sealed import read_listed, write_json
from selfrepair.snapshots.manifest import verify_manifest


def read_facts(path: Path) -> dict[str, dict[str, Any]]:
    """By published model, the values of its config that tell it from others.

    Args:
        path: resources/published/models.json; its digest stands beside it.

    Raises:
        ValueError: It is damaged.
    """
    return {name: of_model["config"] for name, of_model in json.loads(read_listed(path)).items()}


def differences(config: Mapping[str, Any], published: str, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How a model's config differs from a published model's, a line or none; it names everything that differs.

    Weights are not looked at: another training of the same sizes passes.

    Args:
        config: The model's config.json. A key that it lacks, other than model_type, is not compared.
        published: A key of ``facts``.
        facts: From `read_facts`.
    """
    wanted = facts[published]
    compared = wanted if config.get("model_type") == wanted["model_type"] else {"model_type": wanted["model_type"]}
    differing = [key for key in compared if (key in config or key == "model_type") and config.get(key) != wanted[key]]
    if not differing:
        return []
    told = [" and ".join(f"{key} {of.get(key)}" for key in differing) for of in (config, wanted)]
    return [f"the model has {told[0]}, {published} has {told[1]}"]


def check_published(*, model_manifest: Path, facts: Path, model: str, published: str | None, out: Path) -> None:
    """Check that a model is the published one which it is compared with, and record which that is.

    Args:
        model_manifest: Of the model snapshot.
        facts: resources/published/models.json.
        model: The model's name in the config.
        published: Which published model it is; None where it is none of them.
        out: JSON file.

    Raises:
        ValueError: The model is another.
    """
    if published is not None:
        from transformers import AutoConfig

        verify_manifest(model_manifest, kind="model", weights=False)
        # As transformers reads it: with the keys that the file leaves out.
        config = AutoConfig.from_pretrained(model_manifest.parent, local_files_only=True).to_dict()
        for difference in differences(config, published, read_facts(facts)):
            raise ValueError(
                f"models.{model}.published is {published}, but {difference}: "
                "name the published model that it is, or leave the key out"
            )
    write_json(out, {"published": published})
