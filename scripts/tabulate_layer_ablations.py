"""Condense the ablations of whole layers into a table with slopes and intervals."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.layer_ablations import tabulate_layer_ablations

        tabulate_layer_ablations(
            shards=[Path(path) for path in snakemake.input.ablations],
            heads_table=Path(snakemake.input.heads),
            out=Path(snakemake.output.table),
        )
