"""Find every head's top tokens over all shards."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.thresholds import select_top_tokens

        select_top_tokens(
            shards=[Path(path) for path in snakemake.input.activations],
            out=Path(snakemake.output.thresholds),
            provenance=provenance,
            **snakemake.params.selection,
        )
