"""Which tables each figure is made from, of which kinds of ablation, and which figures a run has: read by rules and by runs.

Data only: reading it loads neither pandas nor matplotlib. No figure imports it, so that an entry makes no other figure stale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RESAMPLE = "resample"
PUBLISHED = "published"
"""Stands for the paper's own values (resources/published/self_repair_by_head.csv), which are no table of a run."""

Tables = dict[str, tuple[str, str]]
"""By what a figure calls it, a table's name and kind of ablation."""


@dataclass(frozen=True)
class Asked:
    """What a config asks of a run, as far as it decides which figures there are.

    Attributes:
        main: The main kind of ablation.
        heads: By kind, the heads that it ablates: "all", "chosen", or a list.
        computed: By kind, whether it computes "all" tokens or each head's "top" tokens alone.
        donors: Donors of a prompt.
        others: Prompts of a shard that can be donors of one of its prompts.
        noise_donors: Donors that are told apart, one at a time.
    """

    main: str
    heads: Mapping[str, Any]
    computed: Mapping[str, str]
    donors: int = 1
    others: int = 0
    noise_donors: int = 0


def _main(asked: Asked) -> list[str]:
    return [asked.main]


def of_resampling(_: Asked) -> list[str]:
    """Resampling, whatever the main kind is: layers are ablated by it alone."""
    return [RESAMPLE]


def _all_tokens(asked: Asked) -> list[str]:
    return [asked.main] if asked.computed[asked.main] == "all" else []


def _swept(asked: Asked) -> list[str]:
    """Kinds that compute all tokens of more than the chosen heads."""
    return [kind for kind, heads in asked.heads.items() if asked.computed[kind] == "all" and heads != "chosen"]


def _of_chosen(asked: Asked) -> list[str]:
    """Kinds that ablate the chosen heads: the main one, and those that say so."""
    return [kind for kind, heads in asked.heads.items() if kind == asked.main or heads in ("all", "chosen")]


def _with_donors(asked: Asked) -> list[str]:
    """The main kind where each shard has donors beside the run's own, and all tokens are computed."""
    more = asked.main == RESAMPLE and asked.others > asked.donors
    return _all_tokens(asked) if more else []


def _with_several_donors(asked: Asked) -> list[str]:
    return [asked.main] if asked.main == RESAMPLE and asked.noise_donors > 1 else []


@dataclass(frozen=True)
class Entry:
    """A figure.

    Attributes:
        category: Where the report files it.
        tables: By what the figure calls it, a table's name. A name that ends in "_KIND" stands for one of each kind.
        kinds: The kinds of ablation that it is made of; none where a run has no such figure.
    """

    category: str
    tables: Mapping[str, str]
    kinds: Callable[[Asked], list[str]] = _main

    def of(self, kinds: list[str]) -> Tables:
        """Its tables, of these kinds of ablation."""
        named = [(key, name) for key, name in self.tables.items() if not key.endswith("_KIND")]
        each = [(key, name) for key, name in self.tables.items() if key.endswith("_KIND")]
        found = {key: (name, kinds[0]) for key, name in named}
        return found | {key.replace("KIND", kind): (name, kind) for kind in kinds for key, name in each}

    @property
    def by_kind(self) -> bool:
        """Whether it has a panel a kind of ablation."""
        return any(key.endswith("_KIND") for key in self.tables)


def _same(*names: str, **more: str) -> dict[str, str]:
    return {**{name: name for name in names}, **more}


CATALOGUE = {
    "self_repair_by_layer": Entry("Self-repair", _same("heads", "layers", "model", published=PUBLISHED)),
    "repair_breakdown": Entry("What repairs", _same("layers", "model")),
    "layernorm_repair": Entry("What repairs", _same("heads", "layers", "model")),
    "mlp_repair": Entry("What repairs", _same("heads", "layers", "model")),
    "published_comparison": Entry(
        "Beside the paper", {name: f"published_{name}" for name in ("pairs", "agreement", "distributions")}
    ),
    "effect_vs_logit_change": Entry("Self-repair", {"heads_KIND": "heads"}, _swept),
    "token_noise": Entry("Self-repair", {"tokens": "token_noise", "spread": "token_spread"}, _all_tokens),
    "layernorm_scale_ratio": Entry(
        "LayerNorm",
        {"ratio_KIND": "layernorm_scale_ratio", "histogram_KIND": "layernorm_scale_histogram"},
        _of_chosen,
    ),
    "ablation_types": Entry(
        "LayerNorm", {"tokens_KIND": "ablation_type_tokens", "means_KIND": "ablation_type"}, _of_chosen
    ),
    "layernorm_claim": Entry("LayerNorm", {"claim": "layernorm_claim", "frozen": "frozen_layernorm"}),
    "selection_control": Entry(
        "Controls", {name: f"selection_control_{name}" for name in ("layers", "model")}, _with_donors
    ),
    "donor_noise": Entry("Controls", {"heads": "donor_noise", "tokens": "donor_noise_tokens"}, _with_several_donors),
    "self_reinforcement": Entry("Iterative inference", {"reinforcement": "self_reinforcement"}),
    "next_layer_correlation": Entry(
        "Iterative inference", {"correlations": "next_layer_correlation", "heads": "next_layer_heads"}
    ),
    "who_repairs_whom": Entry(
        "What repairs", {"layers": "repair_by_layer", "rows": "repair_rows", "pairs": "repair_pairs"}
    ),
    "layer_ablation": Entry("What repairs", {"layers": "layer_ablation"}, of_resampling),
    "neuron_share": Entry("Neurons", _same("neuron_share")),
    "neuron_concentration": Entry("Neurons", _same("neuron_concentration")),
    "neuron_consistency": Entry("Neurons", _same("neuron_consistency")),
    "erasure_neurons": Entry("Neurons", {"neurons": "erasure_neurons", "quadrants": "erasure_quadrants"}),
}
"""Every figure of a run of one model on one text, in the order of the findings."""

OF_MODELS = {
    "models_by_layer": Entry("Self-repair", _same("heads", "layers", "model")),
    "models_and_published": Entry("Beside the paper", _same("distributions")),
}
"""Those of all models of a run, made of tables that are joined."""


def figures_of(asked: Asked) -> dict[str, Tables]:
    """The figures of a run, each with its tables."""
    kinds = {name: entry.kinds(asked) for name, entry in CATALOGUE.items()}
    return {name: CATALOGUE[name].of(of) for name, of in kinds.items() if of}
