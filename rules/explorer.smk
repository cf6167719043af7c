"""The explorer: one page of all models and texts of the run, with every head and its tokens in their text.

Inputs: tables, ablations, top tokens and prompts of each model on each text; the models' tokenizers; the published values.
Outputs: results/explorer.html.
Steps: write_explorer.
"""

# By kind of ablation, the tables that the page shows: of kinds that have tables already.
EXPLORED = {
    kind: ["heads", "layers", "model", *(["layernorm_scale_ratio"] if kind in OF_CHOSEN else [])]
    for kind in (MAIN_KIND, *KINDS)
    if kind in (MAIN_KIND, *OF_CHOSEN, *SWEEPS)
}
EXPLORED[MAIN_KIND] += ["self_reinforcement", "erasure_quadrants", "neuron_concentration", "neuron_consistency"]
EXPLORED[MAIN_KIND] += ["token_spread"] if "token_noise" in FIGURES else []
EXPLORED[MAIN_KIND] += ["donor_noise"] if "donor_noise" in FIGURES else []
# What the page is built around: an edit of these is none of the package's modules.
STATIC = sorted(
    os.path.relpath(path) for path in (Path(workflow.basedir) / "srcpkg/selfrepair/explorer/static").iterdir()
)
EXPLORED_RUNS = [[model, corpus] for model in config["run"]["models"] for corpus in config["run"]["corpora"]]


def of_explored_runs(*paths):
    """Paths of every run of the page, run by run."""
    return [path.format(model=model, corpus=corpus) for model, corpus in EXPLORED_RUNS for path in paths]


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
