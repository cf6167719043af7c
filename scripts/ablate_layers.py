"""Ablate whole attentions and whole MLPs, one at a time, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.layer_ablations import ablate_layers_of_shard

        ablate_layers_of_shard(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            out=Path(snakemake.output.ablations),
            prompts=snakemake.params.prompts,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
