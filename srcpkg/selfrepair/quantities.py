"""The measured quantities: their names in code, files, columns and axes, with units.

Definitions follow Rushing & Nanda, "Explorations of Self-Repair in Language Models" (ICML 2024); docs/definitions.md
spells each of them out. Everything here is per (head, token), a token being one (prompt, position) pair that predicts
the next one.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A measured quantity.

    Attributes:
        name: Name in code, HDF5 variables and table columns.
        label: Name on an axis, without the unit.
        unit: Unit on an axis; empty for a pure number.
        description: One line for file attributes and readers.
    """

    name: str
    label: str
    unit: str
    description: str

    @property
    def axis(self) -> str:
        """The axis label: name with its unit in brackets."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


_ALL = (
    Quantity("direct_effect", "direct effect", "logits", "o . d / s of the head in the clean run"),
    Quantity("ablated_direct_effect", "ablated direct effect", "logits", "o' . d / s, with the clean scale s"),
    Quantity("logit_change", "logit change", "logits", "correct logit, ablated run minus clean run"),
    Quantity("self_repair", "self-repair", "logits", "logit_change - (ablated_direct_effect - direct_effect)"),
    Quantity("self_repair_from_heads", "self-repair from heads", "logits", "change of all other heads' direct effects"),
    Quantity("self_repair_from_mlps", "self-repair from MLPs", "logits", "change of all MLP layers' direct effects"),
    Quantity(
        "self_repair_from_postnorms",
        "self-repair from post-norms",
        "logits",
        "what follows from the scales of the norms of components' outputs",
    ),
    Quantity(
        "self_repair_from_own_postnorm",
        "self-repair from own post-norm",
        "logits",
        "of self_repair_from_postnorms, that of the norm which the ablated output goes through",
    ),
    Quantity(
        "self_repair_from_chosen_experts",
        "self-repair from a change of experts",
        "logits",
        "of self_repair_from_mlps, experts that came in less those that went out",
    ),
    Quantity("self_repair_from_layernorm", "self-repair from LayerNorm", "logits", "r' . d * (1/s' - 1/s)"),
    Quantity(
        "capped_logit_change",
        "logit change after the cap",
        "logits",
        "logit_change, with the correct token's logit capped as the model caps it",
    ),
    Quantity(
        "frozen_layernorm_logit_change",
        "logit change, LayerNorm frozen",
        "logits",
        "logit_change - self_repair_from_layernorm",
    ),
    Quantity("clean_scale", "clean final scale", "", "scale s of the final norm in the clean run"),
    Quantity("ablated_scale", "ablated final scale", "", "scale s' of the final norm in the ablated run"),
    Quantity(
        "clipped_fraction_from_heads", "heads' clipped fraction of direct effect", "", "mean clip(heads / DE, 0, 1)"
    ),
    Quantity("clipped_fraction_from_mlps", "MLPs' clipped fraction of direct effect", "", "mean clip(MLPs / DE, 0, 1)"),
    Quantity(
        "clipped_fraction_from_postnorms",
        "post-norms' clipped fraction of direct effect",
        "",
        "mean clip(post-norms / DE, 0, 1)",
    ),
    Quantity(
        "clipped_fraction_from_layernorm",
        "LayerNorm's clipped fraction of direct effect",
        "",
        "mean clip(LayerNorm / DE, 0, 1)",
    ),
    Quantity(
        "pooled_repair_fraction",
        "pooled repair fraction",
        "",
        "sum of self_repair / sum of (direct_effect - ablated_direct_effect)",
    ),
)
QUANTITIES = {quantity.name: quantity for quantity in _ALL}

POSTNORMS, OWN_POSTNORM = "self_repair_from_postnorms", "self_repair_from_own_postnorm"
"""Measured where a model normalises what its components write, and absent elsewhere."""

CHOSEN_EXPERTS = "self_repair_from_chosen_experts"
"""Measured where MLPs are mixtures of experts whose choice can be seen, and absent elsewhere."""

CAPPED = "capped_logit_change"
"""Measured where a model caps its logits, and absent elsewhere."""

PARTS = ("self_repair_from_heads", "self_repair_from_mlps", POSTNORMS, "self_repair_from_layernorm")
"""The parts whose sum is self_repair, exactly."""

OF_PAPER = ("self_repair", "direct_effect", "logit_change", *(part for part in PARTS if part != POSTNORMS))
"""Condensed values that the paper's authors publish; none of their models has post-norms."""

HEAD_TOKEN = (
    "direct_effect",
    "ablated_direct_effect",
    "logit_change",
    "self_repair",
    *PARTS,
    OWN_POSTNORM,
    CHOSEN_EXPERTS,
    CAPPED,
)
"""What an ablation gives for each (head, prompt, pos), in logits."""


NOISE_OF = "noise_of_"
"""Begins the name of what files and tables hold of a quantity's noise, where matrices are bfloat16."""

OF_SOME_MODELS = ("logit_cap", "matrices")
"""Settings that files and tables carry where a model has such."""


def held(names: Iterable[str], by: Container[Any]) -> tuple[str, ...]:
    """Those of some quantities that files or tables hold: some models have no post-norms, no experts, or no cap."""
    return tuple(name for name in names if name in by)


ABLATION_KINDS = ("resample", "mean", "zero")
"""How a head is ablated (definitions.md, Ablations)."""

MEANS = (
    *HEAD_TOKEN,
    "frozen_layernorm_logit_change",
    *(f"clipped_fraction_{part.removeprefix('self_repair_')}" for part in PARTS),
)
"""What tables hold as means over tokens, beside the ratio of sums pooled_repair_fraction."""

SELECTIONS = ("top", "all")
"""Which tokens a table's row is about: the head's top tokens (condensed), or every token (full)."""
