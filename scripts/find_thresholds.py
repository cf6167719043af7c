"""Find every head's top tokens over all shards."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.thresholds import find_thresholds

        find_thresholds(
            shards=[Path(path) for path in snakemake.input.activations],
            out=Path(snakemake.output.thresholds),
            provenance=provenance,
            top_fraction=snakemake.params.top_fraction,
            first_position=snakemake.params.first_position,
        )
