"""Cache the clean run of one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.activations import cache_activations

        cache_activations(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            out=Path(snakemake.output.activations),
            prompts=snakemake.params.prompts,
            compute=snakemake.params.compute,
            # Changes nothing that is measured, so no param: what is there does not become stale by it.
            keep=snakemake.config["cache"]["keep"],
            provenance=provenance,
        )
