"""Let the attention after each chosen head read the input of the layer before, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.chosen_heads import read_chosen_heads
        from selfrepair.measure.moved_residual import measure_moved_residual
        from selfrepair.measure.shard import open_shard

        inputs, params = dict(snakemake.input.items()), snakemake.params
        heads = read_chosen_heads(Path(inputs["chosen"]))
        layers = [layer for layer, _ in heads]
        with open_shard(inputs, prompts=params.prompts, compute=params.compute, layers=layers) as shard:
            measure_moved_residual(
                shard,
                heads=heads,
                out=Path(snakemake.output[0]),
                provenance=provenance,
            )
