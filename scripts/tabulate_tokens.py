"""List every token of a few heads."""

from pathlib import Path

from selfrepair.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables import tabulate_tokens

        tabulate_tokens(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            out=Path(snakemake.output.tokens),
            heads=snakemake.params.heads,
            n_heads=4,
            first_position=snakemake.params.first_position,
        )
