"""The explorer: one page of all models and texts of the run, with every head and its tokens in their text.

Inputs: tables, ablations, top tokens and prompts of each model on each text; the models' tokenizers; the published values.
Outputs: results/explorer.html.
Steps: write_explorer.
"""

# Tables that the page shows where a figure of the run is made from them, beside those of all heads.
SHOWN = (
    *("layernorm_scale_ratio", "self_reinforcement", "token_spread", "donor_noise"),
    *("erasure_quadrants", "neuron_concentration", "neuron_consistency"),
)
OF_FIGURES = {path for tables in FIGURES.values() for path in tables.values()}
# By kind of ablation, the tables that the page shows: of kinds that have tables already.
EXPLORED = {}
for _kind in dict.fromkeys((MAIN_KIND, *KINDS)):
    _shown = [name for name in SHOWN if table(name, _kind) in OF_FIGURES]
    if _shown or table("heads", _kind) in OF_FIGURES:
        EXPLORED[_kind] = ["heads", "layers", "model", *_shown]
# What the page is built around: an edit of these is none of the package's modules.
STATIC = sorted(os.path.relpath(path) for path in (HOME / "srcpkg/selfrepair/explorer/static").iterdir())


rule write_explorer:
    input:
        tables=of_explored_runs(*(table(name, kind) for kind, names in EXPLORED.items() for name in names)),
        ablations=of_explored_runs(
            *(
                ABLATIONS.format(kind=kind, shard=shard, model="{model}", corpus="{corpus}")
                for kind in EXPLORED
                for shard in SHARDS
            )
        ),
        thresholds=of_explored_runs(THRESHOLDS),
        tokens=of_explored_runs(TOKENS),
        chosen_heads=of_explored_runs(CHOSEN_HEADS),
        models=of_explored_runs(MODEL),
        published=PUBLISHED,
        static=STATIC,
    output:
        # Not marked for the report, whose front page links to it: a browser opens no page of megabytes from within another.
        page=EXPLORER,
    log:
        "logs/write_explorer.log",
    benchmark:
        "results/benchmarks/write_explorer.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("write_explorer"),
    params:
        **runs("write_explorer", makes=EXPLORER, runs=EXPLORED_RUNS, tables=EXPLORED, shards=SHARDS),
    message:
        "Write the explorer of all models"
    script:
        "../scripts/{params.script}.py"
