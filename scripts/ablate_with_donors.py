"""Ablate the chosen heads with each of several donors on one shard."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.chosen_heads import read_chosen_heads
        from selfrepair.measure.other_donors import ablate_with_donors

        ablate_with_donors(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            out=Path(snakemake.output.donor_noise),
            prompts=snakemake.params.prompts,
            heads=read_chosen_heads(Path(snakemake.input.chosen)),
            donors=snakemake.params.donors,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
