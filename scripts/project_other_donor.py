"""Project another donor's activations of every head for one shard."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.other_donors import project_other_donor

        project_other_donor(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            out=Path(snakemake.output.other_donor),
            prompts=snakemake.params.prompts,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
