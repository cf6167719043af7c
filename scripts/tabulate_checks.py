"""Gather how far measurements are from plain runs of the whole model."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.checks import tabulate_checks

        tabulate_checks(
            heads_table=Path(snakemake.input.heads),
            shards={kind: [Path(path) for path in snakemake.input[kind]] for kind in snakemake.params.remake},
            remake=snakemake.params.remake,
            out=Path(snakemake.output.checks),
        )
