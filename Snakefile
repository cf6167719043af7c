"""Self-repair in language models: from model and text to every figure. One named target a figure; `all` is the default.

Stages, in order: rules/snapshots.smk, tokens.smk, activations.smk, ablations.smk, tables.smk, circuits.smk, figures.smk.
"""

from snakemake.utils import min_version

min_version("9.10")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "rules/common.smk"
include: "rules/snapshots.smk"
include: "rules/tokens.smk"
include: "rules/activations.smk"
include: "rules/ablations.smk"
include: "rules/tables.smk"
include: "rules/circuits.smk"
include: "rules/figures.smk"


report: "report/workflow.rst"


rule all:
    default_target: True
    input:
        [figure_files(figure) for figure in FIGURES],


for _figure in FIGURES:

    rule:
        name:
            _figure
        input:
            figure_files(_figure),
