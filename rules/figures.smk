"""Figures, each drawn from finished tables only, with its caption for the report.

Inputs: tables, and the published values where they stand beside this run's.
Outputs: figures/{figure}.png and .svg.
Steps: one rule a figure, draw_{figure}; all run scripts/draw_figure.py with the figure's own module.
"""


def table(name, kind=MAIN_KIND):
    """Path of a table of one kind of ablation."""
    return TABLE.format(table=name, kind=kind, model="{model}", corpus="{corpus}")


# What each figure is drawn from, and where the report files it.
FIGURES = {
    "self_repair_by_layer": {
        "tables": {"heads": table("heads"), "layers": table("layers"), "published": PUBLISHED},
        "category": "Self-repair",
    },
    "effect_vs_logit_change": {
        "tables": {f"heads_{kind}": table("heads", kind) for kind in KINDS},
        "category": "Self-repair",
    },
    "repair_breakdown": {"tables": {"layers": table("layers")}, "category": "What repairs"},
    "token_noise": {"tables": {"tokens": table("token_noise")}, "category": "Self-repair"},
    "layernorm_repair": {
        "tables": {"heads": table("heads"), "layers": table("layers")},
        "category": "What repairs",
    },
    "mlp_repair": {
        "tables": {"heads": table("heads"), "layers": table("layers")},
        "category": "What repairs",
    },
}


def figure_files(figure):
    """A figure's files for every model and corpus of the run."""
    return expand(FIGURE, figure=figure, model=config["run"]["models"], corpus=config["run"]["corpora"])


def caption_settings(wildcards):
    """What a caption says of how its figure was made."""
    tokens, statistics = config["tokens"], config["statistics"]
    predictions = tokens["prompt_length"] - 1 - statistics["first_position"]
    return {
        "model": wildcards.model,
        "weights": config["models"][wildcards.model].get("weights", "as its source has them"),
        "corpus": wildcards.corpus,
        "ablation": MAIN_KIND,
        "n_prompts": tokens["prompts"],
        "prompt_length": tokens["prompt_length"],
        "n_tokens": tokens["prompts"] * predictions,
        "donors": tokens["donors"],
        "confidence": 0.95,
        **{key: statistics[key] for key in ("top_fraction", "first_position", "n_bootstrap")},
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
        params:
            figure=_name,
            settings=caption_settings,
            code=code("draw_figure", f"selfrepair.figures.{_name}"),
        threads: 1
        resources:
            mem_mb=1000,
            runtime=10,
        message:
            "Draw {params.figure} for {wildcards.model} on {wildcards.corpus}"
        script:
            "../scripts/draw_figure.py"
