"""Condense who repairs whom over all ablated heads, and find the strongest pairs."""

from pathlib import Path

from selfrepair.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.circuit_tables import tabulate_repair

        tabulate_repair(
            shards=[Path(path) for path in snakemake.input.ablations],
            heads_table=Path(snakemake.input.heads),
            by_layer=Path(snakemake.output.by_layer),
            pairs=Path(snakemake.output.pairs),
        )
