"""Average every head's activations over all shards."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.mean_activations import average_activations

        average_activations(
            shards=[Path(path) for path in snakemake.input.activations],
            out=Path(snakemake.output.mean_activations),
            provenance=provenance,
        )
