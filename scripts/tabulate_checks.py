"""Gather how far measurements are from plain runs of the whole model."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.checks import tabulate_checks

        inputs = dict(snakemake.input.items())
        tabulate_checks(
            heads_table=Path(inputs["heads"]),
            shards={kind: [Path(path) for path in paths] for kind, paths in inputs.items() if kind != "heads"},
            out=Path(snakemake.output.checks),
        )
