"""List tokens of the chosen heads, and how self-repair spreads over them."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.token_noise import tabulate_token_noise

        tabulate_token_noise(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            chosen_heads=Path(snakemake.input.chosen),
            tokens_out=Path(snakemake.output.tokens),
            heads_out=Path(snakemake.output.spread),
        )
