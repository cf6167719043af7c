"""Self-repair in language models: from model and text to every figure. One named target a figure; `findings` says in words
what they show; `all` is the default.

Stages, in order: rules/snapshots.smk, measure.smk, tables.smk, figures.smk, all_models.smk, explorer.smk; quick.smk.
"""

from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")

# Of this file: where another workflow imports it as a module, workflow.basedir is that workflow's.
HOME = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))


configfile: str(HOME / "config" / "config.yaml")


include: "rules/common.smk"
include: "rules/snapshots.smk"
include: "rules/measure.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/all_models.smk"
include: "rules/explorer.smk"
include: "rules/quick.smk"


report: "report/workflow.rst"


# What each target asks for first.
CHECKED = expand(CHECKED_MODEL, model=config["run"]["models"])


rule all:
    input:
        CHECKED,
        of_each_run(FIGURE, figure=FIGURES),
        of_each_run(FINDINGS),
        of_all_models(ALL_MODELS_FIGURE, figure=MODELS_FIGURES),
        of_all_models(ALL_MODELS_FINDINGS),
        EXPLORER,


rule explorer:
    input:
        CHECKED,
        EXPLORER,


rule quick:
    input:
        CHECKED,
        of_each_run(FIRST_FIGURE),


rule findings:
    input:
        CHECKED,
        of_each_run(FINDINGS),
        of_all_models(ALL_MODELS_FINDINGS),


for _figure in FIGURES:

    rule:
        name:
            _figure
        input:
            CHECKED,
            of_each_run(FIGURE, figure=_figure),


for _figure in MODELS_FIGURES:

    rule:
        name:
            _figure
        input:
            CHECKED,
            of_all_models(ALL_MODELS_FIGURE, figure=_figure),
