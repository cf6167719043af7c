"""What makes which rules stale: test_staleness.py holds the workflow to this table, and docs/staleness.md is made from it."""

from pathlib import PurePosixPath
from typing import Any

NEURON_FIGURES = {"neuron_share", "neuron_concentration", "erasure_neurons", "neuron_consistency"}
NAMES = {
    *("self_repair_by_layer", "effect_vs_logit_change", "token_noise", "repair_breakdown", "layernorm_repair"),
    *("mlp_repair", "layernorm_scale_ratio", "ablation_types", "layernorm_claim", *NEURON_FIGURES),
    *("self_reinforcement", "next_layer_correlation", "who_repairs_whom", "layer_ablation"),
    *("selection_control", "donor_noise", "published_comparison"),
}
COMMANDS = ("ablate", "app", "compare", "doctor", "heads", "options", "output", "plan", "quantities", "show", "why")
# Of runs of several models, which the tiny run is not.
MODELS_FIGURES = {"draw_models_by_layer", "draw_models_and_published"}
OF_ALL_MODELS = {"tabulate_all_models", *MODELS_FIGURES, "write_models_findings"}
FIGURES = {f"draw_{name}" for name in NAMES}
SHOWS = FIGURES | MODELS_FIGURES | {"write_findings", "write_models_findings"}
# One page of all models.
EXPLORER = "write_explorer"
EXPLORED = {EXPLORER: 1}
NEURON_SHARES = {"draw_neuron_share", "draw_neuron_concentration", "draw_neuron_consistency"}
REPAIR_PARTS = {"draw_layernorm_repair", "draw_mlp_repair", "write_findings"}
SNAPSHOTS = {"snapshot_model", "snapshot_corpus"}
LAYERNORM = {
    *("tabulate_layernorm_scale", "tabulate_ablation_type", "tabulate_layernorm_claim", "tabulate_frozen_layernorm")
}
CIRCUITS = {
    *("tabulate_reinforcement", "tabulate_repair", "tabulate_moved_residual", "tabulate_layer_ablations"),
}
CONTROLS = {"tabulate_selection_control", "tabulate_donor_noise", "tabulate_published"}
TABLES = {
    "tabulate_heads",
    "tabulate_token_noise",
    "tabulate_neurons",
    *LAYERNORM,
    *CIRCUITS,
    *CONTROLS,
}
REPLAYS = {"ablate_heads", "freeze_layernorm", "measure_neurons", "ablate_layers", "measure_donor_noise"}
ONE_ATTENTION = {"reinforce_heads", "move_residual"}
OF_SHARD = {*REPLAYS, *ONE_ATTENTION, "project_other_donor"}
# These read which heads were chosen.
TAKES_CHOSEN = {"ablate_heads", "freeze_layernorm", "measure_neurons", "measure_donor_noise", "move_residual"}
TABLES_OF_CHOSEN = {
    "tabulate_token_noise",
    "tabulate_repair",
    "tabulate_donor_noise",
    *LAYERNORM - {"tabulate_layernorm_claim"},
}
# These read ablations with the tokens that count.
COUNTS_TOKENS = {"tabulate_heads", "tabulate_token_noise", "tabulate_repair", *LAYERNORM, EXPLORER}
LISTS_TOKENS = {"tabulate_token_noise", "tabulate_ablation_type", "tabulate_donor_noise", "tabulate_neurons"}
RUNS_THE_MODEL = {"cache_activations", *OF_SHARD}
READS_HDF5 = {
    *("tokenize_corpus", "check_prompts", "find_thresholds", "average_activations", "choose_heads"),
    *(RUNS_THE_MODEL | TABLES | {"tabulate_checks", EXPLORER}) - {"tabulate_published"},
}
USES_TABLES = TABLES | SHOWS | OF_ALL_MODELS | {"tabulate_checks", EXPLORER}
EVERY = SNAPSHOTS | READS_HDF5 | {"check_model", "check_published", "tabulate_published"} | SHOWS | OF_ALL_MODELS
READS_SNAPSHOTS = {"tokenize_corpus", "check_prompts", "check_published", "tabulate_heads", *RUNS_THE_MODEL}

# The rules that run each module, and are stale by an edit of it. What is made from their results follows by itself.
USERS: dict[str, set[str]] = {
    **{f"figures/{name}.py": {f"draw_{name}", "write_findings"} for name in NAMES},
    "__init__.py": EVERY,
    # The command line reads what rules have made; it makes nothing that they read.
    "__main__.py": set(),
    **{f"commands/{name}.py": set() for name in COMMANDS},
    "engine/batches.py": REPLAYS,
    "engine/clean.py": RUNS_THE_MODEL,
    "engine/heads.py": OF_SHARD,
    "engine/proof.py": OF_SHARD,
    "engine/replacements.py": OF_SHARD,
    "engine/replay.py": REPLAYS,
    "engine/rounding.py": RUNS_THE_MODEL,
    "engine/single_attention.py": ONE_ATTENTION,
    "engine/sweep.py": {"ablate_heads", "ablate_layers", "measure_donor_noise"},
    **{
        f"explorer/{name}.py": {EXPLORER}
        for name in ("charts", "colours", "packing", "page", "payload", "repairs", "texts", "tokens")
    },
    "families.py": {"snapshot_model"} | RUNS_THE_MODEL | {"check_model"},
    **{f"figures/{name.removeprefix('draw_')}.py": {name, "write_models_findings"} for name in MODELS_FIGURES},
    # Rules and runs read it; what it says is their inputs.
    "figures/catalogue.py": set(),
    "figures/findings.py": {"write_findings", "write_models_findings"},
    "figures/opening.py": {"write_findings", "write_models_findings"},
    # Into axes of the user's own.
    "figures/plotting.py": set(),
    "figures/shared/distributions.py": {
        *("draw_published_comparison", "write_findings", "draw_models_and_published", "write_models_findings"),
    },
    "figures/shared/kinds.py": {
        *("draw_ablation_types", "draw_layernorm_scale_ratio", "draw_effect_vs_logit_change", "write_findings"),
    },
    "figures/shared/models.py": MODELS_FIGURES | {"write_models_findings"},
    "figures/shared/notes.py": NEURON_SHARES | {"draw_erasure_neurons", "draw_self_reinforcement", "write_findings"},
    "figures/shared/neurons.py": NEURON_SHARES | {"draw_erasure_neurons", "write_findings"},
    "figures/shared/parts.py": {
        *("draw_repair_breakdown", "write_findings", "draw_models_by_layer", "write_models_findings"),
    },
    "figures/shared/repair_part.py": REPAIR_PARTS,
    "figures/shared/token_dots.py": {"draw_token_noise", "draw_ablation_types", "write_findings"},
    "figures/style/footers.py": SHOWS,
    "figures/style/guides.py": SHOWS - NEURON_SHARES - {"draw_layernorm_scale_ratio"},
    "figures/style/inputs.py": SHOWS,
    "figures/style/layout.py": SHOWS,
    "figures/style/looks.py": SHOWS | {EXPLORER},
    "figures/style/marks.py": {
        *("draw_self_repair_by_layer", "draw_repair_breakdown", "draw_selection_control", "draw_layer_ablation"),
        *("draw_effect_vs_logit_change", "draw_published_comparison", "draw_self_reinforcement", *REPAIR_PARTS),
        *("draw_models_by_layer", "write_models_findings"),
    },
    "figures/style/panels.py": SHOWS,
    "figures/style/ranges.py": SHOWS
    - NEURON_SHARES
    - {"draw_who_repairs_whom", "draw_layernorm_claim", "draw_layernorm_scale_ratio"},
    "figures/style/saving.py": SHOWS | {EXPLORER},
    "figures/wording.py": SHOWS,
    "files/hdf5.py": READS_HDF5,
    "files/hdf5_seal.py": READS_HDF5,
    "files/kept.py": {"ablate_heads"},
    "files/sealed.py": EVERY,
    "files/tables.py": USES_TABLES,
    "measure/ablations.py": {"ablate_heads"},
    "measure/activations.py": RUNS_THE_MODEL,
    "measure/chosen_heads.py": {"choose_heads", *TAKES_CHOSEN, *TABLES_OF_CHOSEN, EXPLORER},
    "measure/donor_noise.py": {"measure_donor_noise"},
    "measure/frozen_layernorm.py": {"freeze_layernorm"},
    "measure/layer_ablations.py": {"ablate_layers"},
    "measure/mean_activations.py": {"average_activations", *OF_SHARD},
    "measure/moved_residual.py": {"move_residual"},
    "measure/neurons.py": {"measure_neurons"},
    # For people alone.
    "measure/one_text.py": set(),
    "measure/other_donor.py": {"project_other_donor"},
    "measure/reinforcement.py": {"reinforce_heads"},
    "measure/shard.py": OF_SHARD,
    "measure/thresholds.py": {"find_thresholds"}
    | OF_SHARD
    | COUNTS_TOKENS
    | TABLES_OF_CHOSEN
    | {"tabulate_selection_control", "choose_heads"},
    "measure/tokens.py": {"tokenize_corpus", "check_prompts"} | RUNS_THE_MODEL,
    "model/allocator.py": RUNS_THE_MODEL,
    "model/bridged.py": RUNS_THE_MODEL,
    "model/calls.py": RUNS_THE_MODEL,
    "model/experts.py": RUNS_THE_MODEL,
    # Counts operations for the benchmark and a test.
    "model/flops.py": set(),
    "model/head_names.py": set(),
    "model/loading.py": RUNS_THE_MODEL,
    "model/model.py": RUNS_THE_MODEL,
    "model/norm.py": RUNS_THE_MODEL,
    "model/observed.py": RUNS_THE_MODEL,
    "model/parts.py": RUNS_THE_MODEL,
    "model/placing.py": RUNS_THE_MODEL,
    "model/precision.py": RUNS_THE_MODEL,
    # `ablate_heads` takes texts, though the job does not.
    "model/texts.py": {"ablate_heads", EXPLORER},
    "model/token_ids.py": {"ablate_heads"},
    "quantities.py": RUNS_THE_MODEL | SHOWS | TABLES | {EXPLORER},
    # What a finished run is read through.
    **{f"run/{name}.py": set() for name in ("cache", "opened", "plot", "shards")},
    "snapshots/checked.py": {"check_model"},
    "snapshots/corpora.py": {"snapshot_corpus"},
    "snapshots/encoding.py": {"snapshot_model", "tokenize_corpus", "check_prompts", EXPLORER} | RUNS_THE_MODEL,
    "snapshots/folder.py": {"snapshot_model"} | RUNS_THE_MODEL | {"check_model"},
    "snapshots/hub.py": SNAPSHOTS,
    "snapshots/manifest.py": SNAPSHOTS | READS_SNAPSHOTS,
    "snapshots/models.py": {"snapshot_model"},
    "snapshots/names.py": SNAPSHOTS | RUNS_THE_MODEL | {"check_model"},
    "snapshots/packages.py": SNAPSHOTS,
    "snapshots/pieces.py": {"snapshot_model"},
    "snapshots/pretokenizers.py": {"snapshot_model"},
    "snapshots/published.py": {"check_published"},
    "snapshots/shapes.py": {"check_model"},
    "snapshots/sources.py": SNAPSHOTS,
    "snapshots/texts.py": SNAPSHOTS,
    "snapshots/tokenizers.py": {"snapshot_model"},
    "snapshots/weights.py": {"snapshot_model"} | RUNS_THE_MODEL,
    "snapshots/wikitext.py": {"snapshot_corpus"},
    "tables/ablation_type.py": {"tabulate_ablation_type"},
    "tables/all_models.py": {"tabulate_all_models"},
    "tables/checks.py": {"tabulate_checks"},
    "tables/columns.py": {
        *("tabulate_heads", "tabulate_layernorm_scale", "tabulate_frozen_layernorm", "tabulate_reinforcement"),
        *("tabulate_layer_ablations", "tabulate_all_models", *CONTROLS),
    },
    "tables/counted_tokens.py": {*COUNTS_TOKENS, "tabulate_selection_control"},
    "tables/donor_noise.py": {"tabulate_donor_noise"},
    "tables/frozen_layernorm.py": {"tabulate_frozen_layernorm"},
    "tables/heads.py": {"tabulate_heads"},
    "tables/layer_ablations.py": {"tabulate_layer_ablations"},
    "tables/layernorm_claim.py": {"tabulate_layernorm_claim"},
    "tables/layernorm_scale.py": {"tabulate_layernorm_scale"},
    "tables/moved_residual.py": {"tabulate_moved_residual"},
    "tables/neurons.py": {"tabulate_neurons"},
    "tables/noise.py": {"tabulate_heads"},
    "tables/published.py": {"tabulate_published"},
    "tables/reinforcement.py": {"tabulate_reinforcement"},
    "tables/repair.py": {"tabulate_repair"},
    "tables/selection_control.py": {"tabulate_selection_control"},
    "tables/sample.py": LISTS_TOKENS,
    "tables/statistics.py": TABLES | {EXPLORER},
    "tables/token_noise.py": {"tabulate_token_noise"},
    # What runs jobs computes nothing; what it hands to them are params and inputs.
    "workflow/bar.py": set(),
    "workflow/config.py": set(),
    "workflow/devices.py": set(),
    "workflow/failures.py": set(),
    "workflow/graph.py": set(),
    "workflow/jobs.py": set(),
    "workflow/logs.py": set(),
    "workflow/machine.py": set(),
    "workflow/plan.py": set(),
    "workflow/progress.py": set(),
    "workflow/provenance.py": set(),
    "workflow/records.py": set(),
    "workflow/resources.py": set(),
    "workflow/scheduler.py": set(),
    "workflow/schema.py": set(),
    "workflow/second_names.py": set(),
}
# Finds what thresholds.py writes.
USERS["measure/largest.py"] = USERS["measure/thresholds.py"]
# A folder's own file is run by whatever runs a module in it.
for _folder in {str(folder) for module in USERS for folder in PurePosixPath(module).parents if folder.name}:
    USERS[f"{_folder}/__init__.py"] = set().union(*(USERS[at] for at in USERS if at.startswith(f"{_folder}/")))


def drawn(*names: str) -> dict[str, int]:
    """The jobs that show some figures."""
    return {**{f"draw_{name}": 1 for name in names}, "write_findings": 1}


# Jobs of the tiny run: three kinds of ablation on two shards.
DRAWN = drawn(*NAMES)
FROZEN = {"freeze_layernorm": 2, "tabulate_frozen_layernorm": 1}
CHECKS = {"tabulate_checks": 1, "write_findings": 1}
NEURONS = {"measure_neurons": 2, **CHECKS, "tabulate_neurons": 1, **drawn(*NEURON_FIGURES), **EXPLORED}
MOVED = {"move_residual": 2, **CHECKS, "tabulate_moved_residual": 1, **drawn("next_layer_correlation")}
NOISE = {"measure_donor_noise": 2, **CHECKS, "tabulate_donor_noise": 1, **drawn("donor_noise"), **EXPLORED}
REINFORCED = {"reinforce_heads": 2, **CHECKS, "tabulate_reinforcement": 1, **drawn("self_reinforcement"), **EXPLORED}
OF_CHOSEN = {
    **{"choose_heads": 1, "tabulate_token_noise": 1, "tabulate_layernorm_scale": 3, "tabulate_ablation_type": 3},
    **{"tabulate_repair": 1, **FROZEN, **NEURONS, **MOVED, **NOISE},
    **drawn("token_noise", "layernorm_scale_ratio", "ablation_types", "layernorm_claim", "who_repairs_whom"),
    **EXPLORED,
}
# All tables and figures: of the kinds of ablation three each, where there is one of each kind.
TABULATED = {
    **dict.fromkeys(TABLES | {"tabulate_checks"}, 1),
    **{"tabulate_heads": 3, "tabulate_layernorm_scale": 3, "tabulate_ablation_type": 3, **DRAWN, **EXPLORED},
}
# One kind of ablation that is not the main one.
OTHER_KIND = {
    **{"ablate_heads": 2, "tabulate_heads": 1, **CHECKS},
    **drawn("effect_vs_logit_change", "layernorm_scale_ratio", "ablation_types"),
    **EXPLORED,
}
ABLATED_OTHERS = {**OTHER_KIND, "tabulate_layernorm_scale": 1, "tabulate_ablation_type": 1}
CONDENSED = {**OF_CHOSEN, **TABULATED}
SELECTED = {"find_thresholds": 1, "ablate_heads": 6, "reinforce_heads": 2, **CONDENSED}
# Of every replay but those of the chosen heads, which follow the ablations.
REPLAYED = {"ablate_heads": 6, "ablate_layers": 2, **CONDENSED}
OPENED = {**REPLAYED, "project_other_donor": 2, "reinforce_heads": 2}
FROM_ACTIVATIONS = {"cache_activations": 2, "average_activations": 1, **SELECTED, **OPENED}
FROM_TOKENS = {"tokenize_corpus": 1, "check_prompts": 1, **FROM_ACTIVATIONS}
FROM_MODEL = {"snapshot_model": 1, "check_model": 1, "check_published": 1, **FROM_TOKENS}
FROM_CORPUS = {"snapshot_corpus": 1, **FROM_TOKENS}
FROM_SNAPSHOTS = {**FROM_MODEL, **FROM_CORPUS}

# As above, of one shard instead of two.
ONE_SHARD = {**{rule: 1 if count == 2 else count for rule, count in FROM_TOKENS.items()}, "ablate_heads": 3}
# The main kind of ablation alone.
MAIN_KIND = {**CONDENSED, "ablate_heads": 2, "tabulate_heads": 1}
# Of its top tokens alone there are no figures of all tokens.
ALL_TOKENS = {"tabulate_token_noise", "draw_token_noise", "tabulate_selection_control", "draw_selection_control"}
SIZES = {
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "d_model": 16,
    "d_head": 4,
    "d_mlp": 32,
    "vocabulary": 9,
    "gated": True,
}
EVERY_HEAD = [[layer, head] for layer in (1, 0) for head in range(4)]
DIGEST = "0" * 64
WORDS = "text for the table"

# By key of the config, another value than the tiny run's and the jobs that it makes stale.
KEYS: dict[str, tuple[Any, dict[str, int]]] = {
    "models.*.source": ("path:another", FROM_MODEL),
    "models.*.parts": ([{"source": "package:a==1", "file": "a"}, {"source": "package:b==1", "file": "b"}], FROM_MODEL),
    "models.*.file": ("model.gguf", FROM_MODEL),
    "models.*.wheel_sha256": (DIGEST, FROM_MODEL),
    "models.*.sha256": (DIGEST, FROM_MODEL),
    "models.*.weights": (WORDS, FROM_MODEL),
    "models.*.license": (WORDS, {}),
    "models.*.shape": (SIZES, {}),
    "models.*.published": (
        "gpt2-small",
        {"check_published": 1, "tabulate_published": 1, **drawn("published_comparison")},
    ),
    "corpora.*.source": ("path:other_text", FROM_CORPUS),
    "corpora.*.file": ("text.bz2", FROM_CORPUS),
    "corpora.*.wheel_sha256": (DIGEST, FROM_CORPUS),
    "corpora.*.sha256": (DIGEST, FROM_CORPUS),
    "corpora.*.format": ("text", FROM_CORPUS),
    "corpora.*.config": ("default", FROM_CORPUS),
    "corpora.*.split": ("test", FROM_CORPUS),
    "corpora.*.text_column": ("body", FROM_CORPUS),
    "corpora.*.documents": (4, FROM_CORPUS),
    "corpora.*.license": (WORDS, {}),
    "tokens.prompts": (
        12,
        {
            **FROM_ACTIVATIONS,
            **{"cache_activations": 1, "check_prompts": 1, "ablate_heads": 9},
            **dict.fromkeys(("freeze_layernorm", "measure_neurons", "measure_donor_noise"), 3),
            **dict.fromkeys(("reinforce_heads", "move_residual"), 3),
            **dict.fromkeys(("ablate_layers", "project_other_donor"), 1),
        },
    ),
    "tokens.prompt_length": (12, FROM_TOKENS),
    "tokens.prompts_per_shard": (8, ONE_SHARD),
    "tokens.donors": (2, FROM_TOKENS),
    "tokens.seed": (1, FROM_TOKENS),
    "compute.device": ("cuda", FROM_ACTIVATIONS),
    "compute.dtype": ("float64", FROM_ACTIVATIONS),
    "compute.weights": ("bfloat16", FROM_ACTIVATIONS),
    "compute.offload": (True, FROM_ACTIVATIONS),
    "compute.center_unembed": (False, FROM_ACTIVATIONS),
    "cache.keep": (False, {}),
    "ablations.resample.heads": ([[0, 0], [0, 1], [1, 1]], MAIN_KIND),
    "ablations.resample.tokens": ("top", {rule: MAIN_KIND[rule] for rule in MAIN_KIND if rule not in ALL_TOKENS}),
    "ablations.mean.heads": ("chosen", ABLATED_OTHERS),
    "ablations.mean.tokens": ("top", ABLATED_OTHERS),
    "ablations.zero.heads": ([[0, 1], [1, 1]], OTHER_KIND),
    "ablations.zero.tokens": ("top", ABLATED_OTHERS),
    "statistics.top_fraction": (0.2, SELECTED),
    "statistics.first_position": (1, SELECTED),
    "statistics.n_bootstrap": (60, TABULATED),
    "statistics.bootstrap_seed": (1, TABULATED),
    "analyses.heads": ([[0, 1]], OF_CHOSEN),
    "analyses.neuron_layer": (1, NEURONS),
    "analyses.top_neurons": (20, NEURONS),
    "analyses.reinforcement_scales": ([2], REINFORCED),
    "analyses.noise_donors": (2, NOISE),
}
# What adds or takes away whole runs, or is written in another way.
RUNS = ("run.models", "run.corpora")
