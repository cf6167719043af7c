"""List what one kind of ablation does to the strongest of the chosen heads."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.ablation_type import tabulate_ablation_type

        tabulate_ablation_type(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            chosen_heads=Path(snakemake.input.chosen),
            tokens=Path(snakemake.output.tokens),
            means=Path(snakemake.output.means),
        )
