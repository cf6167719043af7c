"""Ablate heads, one at a time, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job
from selfrepair.workflow.second_names import two_names

if __name__ == "__main__":
    out = Path(snakemake.output[0])
    with job(snakemake) as provenance, two_names(out, "ablations", provenance) as finished:
        if not finished:
            from selfrepair.measure.ablations import measure_ablations
            from selfrepair.measure.chosen_heads import read_chosen_heads
            from selfrepair.measure.shard import open_shard

            inputs, params = dict(snakemake.input.items()), snakemake.params
            heads = read_chosen_heads(Path(inputs["chosen"])) if inputs["chosen"] else params.heads
            layers = None if heads is None else [layer for layer, _ in heads]
            with open_shard(inputs, prompts=params.prompts, compute=params.compute, layers=layers) as shard:
                measure_ablations(
                    shard,
                    kind=snakemake.wildcards.kind,
                    heads=heads,
                    which=params.which,
                    out=out,
                    provenance=provenance,
                )
