"""Measure the neurons of one MLP with the chosen heads ablated, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.chosen_heads import read_chosen_heads
        from selfrepair.measure.neurons import measure_neurons
        from selfrepair.measure.shard import open_shard

        inputs, params = dict(snakemake.input.items()), snakemake.params
        with open_shard(inputs, prompts=params.prompts, compute=params.compute) as shard:
            measure_neurons(
                shard,
                kind=snakemake.wildcards.kind,
                heads=read_chosen_heads(Path(inputs["chosen"])),
                neuron_layer=params.neuron_layer,
                top_neurons=params.top_neurons,
                out=Path(snakemake.output[0]),
                provenance=provenance,
            )
