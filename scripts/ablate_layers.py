"""Ablate whole attentions and whole MLPs, one at a time, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.layer_ablations import measure_layer_ablations
        from selfrepair.measure.shard import open_shard

        inputs, params = dict(snakemake.input.items()), snakemake.params
        with open_shard(inputs, prompts=params.prompts, compute=params.compute) as shard:
            measure_layer_ablations(
                shard,
                out=Path(snakemake.output[0]),
                provenance=provenance,
            )
