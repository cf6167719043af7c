"""Condense self-reinforcement into a table that labels every head."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.reinforcement import tabulate_reinforcement

        tabulate_reinforcement(
            shards=[Path(path) for path in snakemake.input.reinforcement],
            heads_table=Path(snakemake.input.heads),
            out=Path(snakemake.output.table),
        )
