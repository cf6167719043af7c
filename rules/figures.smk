"""Figures, each drawn from finished tables only, with its caption for the report; and what they show, in words.

Inputs: tables, and the published values where they stand beside this run's.
Outputs: figures/{figure}.png and .svg, findings.md.
Steps: one rule a figure, draw_{figure}; all run scripts/draw_figure.py with the figure's own module. write_findings.
"""

# What each figure and its section of the findings are made from, and where the report files it.
FIGURES = {
    "self_repair_by_layer": {
        "tables": {
            **{name: table(name) for name in ("heads", "layers", "model")},
            "published": PUBLISHED,
        },
        "category": "Self-repair",
    },
    "repair_breakdown": {"tables": {"layers": table("layers")}, "category": "What repairs"},
    "layernorm_repair": {
        "tables": {name: table(name) for name in ("heads", "layers", "model")},
        "category": "What repairs",
    },
    "mlp_repair": {
        "tables": {name: table(name) for name in ("heads", "layers", "model")},
        "category": "What repairs",
    },
    "published_comparison": {
        "tables": {name: table(f"published_{name}") for name in ("pairs", "agreement", "distributions")},
        "category": "Beside the paper",
    },
}

# These show all tokens, so they need a kind that computes them.
SWEEPS = [kind for kind in KINDS if COMPUTED[kind] == "all" and HEADS[kind] != "chosen"]
if SWEEPS:
    FIGURES["effect_vs_logit_change"] = {
        "tables": {f"heads_{kind}": table("heads", kind) for kind in SWEEPS},
        "category": "Self-repair",
    }
if COMPUTED[MAIN_KIND] == "all":
    FIGURES["token_noise"] = {
        "tables": {"tokens": table("token_noise"), "spread": table("token_spread")},
        "category": "Self-repair",
    }

# The chosen heads were ablated by the main kind, and by the kinds that say so.
OF_CHOSEN = [kind for kind in KINDS if kind == MAIN_KIND or HEADS[kind] in ("all", "chosen")]
FIGURES |= {
    "layernorm_scale_ratio": {
        "tables": {
            f"{name}_{kind}": table(f"layernorm_scale_{name}", kind)
            for kind in OF_CHOSEN
            for name in ("ratio", "histogram")
        },
        "category": "LayerNorm",
    },
    "ablation_types": {
        "tables": {
            **{f"tokens_{kind}": table("ablation_type_tokens", kind) for kind in OF_CHOSEN},
            **{f"means_{kind}": table("ablation_type", kind) for kind in OF_CHOSEN},
        },
        "category": "LayerNorm",
    },
    "layernorm_claim": {
        "tables": {"claim": table("layernorm_claim"), "frozen": table("frozen_layernorm")},
        "category": "LayerNorm",
    },
}

# These compare donors, so each shard needs donors beside the run's own.
if MAIN_KIND == "resample" and COMPUTED[MAIN_KIND] == "all" and OTHERS > config["tokens"]["donors"]:
    FIGURES["selection_control"] = {
        "tables": {"layers": table("selection_control_layers"), "model": table("selection_control_model")},
        "category": "Controls",
    }
if MAIN_KIND == "resample" and NOISE_DONORS > 1:
    FIGURES["donor_noise"] = {
        "tables": {"heads": table("donor_noise"), "tokens": table("donor_noise_tokens")},
        "category": "Controls",
    }

FIGURES |= {
    "self_reinforcement": {
        "tables": {"reinforcement": table("self_reinforcement")},
        "category": "Iterative inference",
    },
    "next_layer_correlation": {
        "tables": {"correlations": table("next_layer_correlation"), "heads": table("next_layer_heads")},
        "category": "Iterative inference",
    },
    "who_repairs_whom": {
        "tables": {
            "layers": table("repair_by_layer"),
            "rows": table("repair_rows"),
            "pairs": table("repair_pairs"),
        },
        "category": "What repairs",
    },
    "layer_ablation": {
        "tables": {"layers": table("layer_ablation", kind="resample")},
        "category": "What repairs",
    },
}

# Neurons of one MLP, on top tokens, which every kind computes.
FIGURES |= {
    name: {"tables": {name: table(name)}, "category": "Neurons"}
    for name in ("neuron_share", "neuron_concentration", "neuron_consistency")
}
FIGURES["erasure_neurons"] = {
    "tables": {"neurons": table("erasure_neurons"), "quadrants": table("erasure_quadrants")},
    "category": "Neurons",
}


for _name, _figure in FIGURES.items():

    rule:
        name:
            f"draw_{_name}"
        input:
            **_figure["tables"],
        output:
            png=report(
                FIGURE.format(figure=_name, model="{model}", corpus="{corpus}"),
                caption=f"../report/{_name}.rst",
                category=_figure["category"],
                subcategory="{model} on {corpus}",
                labels={"figure": _name.replace("_", " ")},
            ),
            svg=FIGURE.format(figure=_name, model="{model}", corpus="{corpus}").replace(".png", ".svg"),
        log:
            f"{LOGS}/draw_{_name}.log",
        priority: FIRST if _name == "self_repair_by_layer" else 0
        group:
            in_group("tables")
        conda:
            "../environment.yml"
        threads: 1
        resources:
            **resources("draw_figure"),
        params:
            **runs(
                "draw_figure",
                f"selfrepair.figures.{_name}",
                makes=FIGURE.format(figure=_name, model="{model}", corpus="{corpus}"),
                figure=_name,
                settings=caption_settings,
            ),
        message:
            "Draw {params.figure} for {wildcards.model} on {wildcards.corpus}"
        script:
            "../scripts/{params.script}.py"


rule write_findings:
    input:
        **{f"{name}_tables": list(figure["tables"].values()) for name, figure in FIGURES.items()},
        heads=table("heads"),
        checks=table("checks"),
        figures=expand(FIGURE, figure=FIGURES, allow_missing=True),
    output:
        findings=report(
            FINDINGS,
            category="Findings",
            subcategory="{model} on {corpus}",
            labels={"text": "findings"},
        ),
    log:
        f"{LOGS}/write_findings.log",
    group:
        in_group("tables")
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("write_findings"),
    params:
        **runs(
            "write_findings",
            *(f"selfrepair.figures.{name}" for name in FIGURES),
            makes=FINDINGS,
            tables={name: list(figure["tables"]) for name, figure in FIGURES.items()},
        ),
    message:
        "Write down the findings for {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"
