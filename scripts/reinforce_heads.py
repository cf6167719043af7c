"""Add each head's own output to its input at its top tokens, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.reinforcement import reinforce_shard

        reinforce_shard(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            out=Path(snakemake.output.reinforcement),
            prompts=snakemake.params.prompts,
            scales=snakemake.params.scales,
            seed=snakemake.params.seed,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
