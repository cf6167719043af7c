"""Exact measurement of self-repair in language models.

Ablate attention heads, and decompose what compensates into heads, MLPs and the final norm's scale, after Rushing & Nanda,
"Explorations of Self-Repair in Language Models" (ICML 2024, arXiv 2402.15390).
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfrepair.measure.ablations import ablate_heads as ablate_heads
    from selfrepair.measure.one_text import self_repair as self_repair
    from selfrepair.model.loading import load_model as load_model
    from selfrepair.run.opened import open_run as open_run

__version__ = version("selfrepair")
__all__ = ["__version__", "ablate_heads", "load_model", "open_run", "self_repair"]

# Loaded at first use, so that importing the package does not import torch.
_LAZY = {
    "ablate_heads": "selfrepair.measure.ablations",
    "load_model": "selfrepair.model.loading",
    "open_run": "selfrepair.run.opened",
    "self_repair": "selfrepair.measure.one_text",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
