"""Hold the closed form of the LayerNorm part to runs with the final scale really frozen."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.frozen_layernorm import tabulate_frozen_layernorm

        tabulate_frozen_layernorm(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            chosen_heads=Path(snakemake.input.chosen),
            frozen=[Path(path) for path in snakemake.input.frozen],
            out=Path(snakemake.output.frozen),
        )
