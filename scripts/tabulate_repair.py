"""Condense who repairs whom: by layer, for the chosen heads in full, and the strongest pairs."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.repair import tabulate_repair

        tabulate_repair(
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            chosen_heads=Path(snakemake.input.chosen),
            heads_table=Path(snakemake.input.heads),
            tables={name: Path(snakemake.output[name]) for name in ("by_layer", "rows", "pairs")},
        )
