"""Ablate the chosen heads on one shard of prompts with the final scale frozen."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.chosen_heads import read_chosen_heads
        from selfrepair.measure.frozen_layernorm import freeze_layernorm

        mean_activations = snakemake.input.get("mean_activations")
        freeze_layernorm(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            mean_activations=Path(mean_activations) if mean_activations else None,
            out=Path(snakemake.output.frozen),
            kind=snakemake.wildcards.kind,
            prompts=snakemake.params.prompts,
            heads=read_chosen_heads(Path(snakemake.input.chosen)),
            compute=snakemake.params.compute,
            provenance=provenance,
        )
