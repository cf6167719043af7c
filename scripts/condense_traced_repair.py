"""Condense who repairs the chosen heads, and the strongest pairs, into tables with intervals."""

from pathlib import Path

from selfrepair.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.circuit_tables import condense_traced_repair

        condense_traced_repair(
            shards=[Path(path) for path in snakemake.input.traced],
            chosen_heads=Path(snakemake.input.chosen),
            pairs=Path(snakemake.input.pairs),
            heads_table=Path(snakemake.input.heads),
            tables={"rows": Path(snakemake.output.rows), "pairs": Path(snakemake.output.pairs)},
            **snakemake.params.statistics,
        )
