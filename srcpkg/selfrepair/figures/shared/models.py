"""What the figures of all models of a run share: their looks, and settings that are lists (`selfrepair.tables.all_models`)."""

from collections.abc import Mapping
from typing import Any

from selfrepair.figures.style import looks


def model_looks(run: Mapping[str, Any]) -> dict[str, looks.Look]:
    """The look of each model of the run, in their order."""
    return dict(zip(run["model"], looks.run_looks(len(run["model"])), strict=True))


def setting(run: Mapping[str, Any], name: str, model: str) -> Any:
    """A setting that each model has of its own."""
    return run[name][list(run["model"]).index(model)]
