"""Choose the heads that analyses of single heads are about."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.measure.chosen_heads import choose_heads

        choose_heads(
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            out=Path(snakemake.output.chosen),
            # Not the param, which says in whose words this was asked for before.
            heads=snakemake.config["analyses"]["heads"],
        )
