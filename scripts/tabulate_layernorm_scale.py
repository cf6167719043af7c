"""Count how the final scale changes under one kind of ablation."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.layernorm_scale import tabulate_layernorm_scale

        tabulate_layernorm_scale(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            chosen_heads=Path(snakemake.input.chosen),
            summary=Path(snakemake.output.ratios),
            histogram=Path(snakemake.output.histogram),
        )
