"""Let the attention after each chosen head read the input of the layer before, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.moved_residual import move_residual_of_shard

        move_residual_of_shard(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            chosen_heads=Path(snakemake.input.chosen),
            out=Path(snakemake.output.moved),
            prompts=snakemake.params.prompts,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
