"""Condense the neurons of all shards into tables with intervals."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.neurons import tabulate_neurons

        tabulate_neurons(
            shards=[Path(path) for path in snakemake.input.neurons],
            heads_table=Path(snakemake.input.heads),
            tables={name: Path(path) for name, path in snakemake.output.items() if name != "csv"},
        )
