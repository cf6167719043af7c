"""Measure the neurons of one MLP with the chosen heads ablated, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.neurons import measure_neurons

        mean_activations = snakemake.input.get("mean_activations")
        measure_neurons(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            mean_activations=Path(mean_activations) if mean_activations else None,
            chosen_heads=Path(snakemake.input.chosen),
            out=Path(snakemake.output.neurons),
            prompts=snakemake.params.prompts,
            kind=snakemake.wildcards.kind,
            neuron_layer=snakemake.params.neuron_layer,
            top_neurons=snakemake.params.top_neurons,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
