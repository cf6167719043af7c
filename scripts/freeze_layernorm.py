"""Ablate the chosen heads on one shard of prompts with the final scale frozen."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.chosen_heads import read_chosen_heads
        from selfrepair.measure.frozen_layernorm import measure_frozen_layernorm
        from selfrepair.measure.shard import open_shard

        inputs, params = dict(snakemake.input.items()), snakemake.params
        heads = read_chosen_heads(Path(inputs["chosen"]))
        layers = [layer for layer, _ in heads]
        with open_shard(inputs, prompts=params.prompts, compute=params.compute, layers=layers) as shard:
            measure_frozen_layernorm(
                shard,
                kind=snakemake.wildcards.kind,
                heads=heads,
                out=Path(snakemake.output[0]),
                provenance=provenance,
            )
