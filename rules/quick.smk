"""A first figure within minutes: self_repair_by_layer of the run's first shard.

Inputs: what the whole run makes of that shard, its ablations for one, which are the same files: the whole run goes on from them.
Outputs: below quick/: thresholds.h5, tables/{kind}/heads, layers and model.parquet, figures/self_repair_by_layer.png and .svg.
They are what a run of so few prompts would make.
Steps: rules of the other files, on fewer shards: find_quick_thresholds, tabulate_quick_heads, draw_quick.
"""

# A main kind of top tokens alone has only those of the whole run; and of a small shard's tokens the top fraction may be none.
_tokens = config["tokens"]["prompts_per_shard"] * (
    config["tokens"]["prompt_length"] - 1 - config["statistics"]["first_position"]
)
FIRST_FIGURE = (
    QUICK_FIGURE
    if COMPUTED[MAIN_KIND] == "all" and int(config["statistics"]["top_fraction"] * _tokens) > 0
    else FIGURE.format(figure="self_repair_by_layer", model="{model}", corpus="{corpus}")
)


use rule find_thresholds as find_quick_thresholds with:
    input:
        activations=expand(ACTIVATIONS, shard=SHARDS[0], allow_missing=True),
    output:
        thresholds=QUICK_THRESHOLDS,
    log:
        f"{LOGS}/quick/find_thresholds.log",
    benchmark:
        f"{BENCHMARKS}/quick/find_thresholds.tsv"
    message:
        "Find the top tokens of every head of {wildcards.model} in a part of {wildcards.corpus}"


use rule tabulate_heads as tabulate_quick_heads with:
    input:
        model=MODEL,
        ablations=expand(ABLATIONS, shard=SHARDS[0], allow_missing=True),
        thresholds=QUICK_THRESHOLDS,
    output:
        heads=quick_table("heads", kind="{kind}"),
        layers=quick_table("layers", kind="{kind}"),
        model_mean=quick_table("model", kind="{kind}"),
        csv=beside(
            quick_table("heads", kind="{kind}"),
            quick_table("layers", kind="{kind}"),
            quick_table("model", kind="{kind}"),
        ),
    log:
        f"{LOGS}/quick/tabulate_heads/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/quick/tabulate_heads/{{kind}}.tsv"
    params:
        **runs(
            "tabulate_heads",
            makes=quick_table("heads", kind="{kind}"),
            statistics=statistics("first_position", "n_bootstrap", "bootstrap_seed"),
            top_fraction=config["statistics"]["top_fraction"],
            donors=config["tokens"]["donors"],
            part={"prompts_of_run": config["tokens"]["prompts"]},
        ),
    message:
        "Condense {wildcards.kind} ablations of {wildcards.model} on a part of {wildcards.corpus}"


use rule draw_self_repair_by_layer as draw_quick with:
    input:
        **{name: quick_table(name) for name in ("heads", "layers", "model")},
        published=PUBLISHED,
    output:
        png=QUICK_FIGURE,
        svg=QUICK_FIGURE.replace(".png", ".svg"),
    log:
        f"{LOGS}/quick/draw.log",
    params:
        **runs(
            "draw_figure",
            "selfrepair.figures.self_repair_by_layer",
            makes=QUICK_FIGURE,
            figure="self_repair_by_layer",
        ),
    message:
        "Draw {params.figure} for {wildcards.model} on a part of {wildcards.corpus}"
