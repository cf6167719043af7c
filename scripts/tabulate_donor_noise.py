"""Compare the spread over donors with the spread over tokens."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.donor_noise import tabulate_donor_noise

        tabulate_donor_noise(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.donor_noise],
            chosen_heads=Path(snakemake.input.chosen),
            heads_out=Path(snakemake.output.heads),
            tokens_out=Path(snakemake.output.tokens),
        )
