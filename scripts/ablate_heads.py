"""Ablate heads, one at a time, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.ablations import ablate_shard
        from selfrepair.measure.chosen_heads import read_chosen_heads

        chosen = snakemake.input.get("chosen")
        mean_activations = snakemake.input.get("mean_activations")
        ablate_shard(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            mean_activations=Path(mean_activations) if mean_activations else None,
            out=Path(snakemake.output.ablations),
            kind=snakemake.wildcards.kind,
            prompts=snakemake.params.prompts,
            heads=read_chosen_heads(Path(chosen)) if chosen else snakemake.params.heads,
            which=snakemake.params.which,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
