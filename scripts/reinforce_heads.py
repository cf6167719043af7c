"""Add each head's own output to its input at its top tokens, on one shard of prompts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.reinforcement import measure_reinforcement
        from selfrepair.measure.shard import open_shard

        inputs, params = dict(snakemake.input.items()), snakemake.params
        with open_shard(inputs, prompts=params.prompts, compute=params.compute) as shard:
            measure_reinforcement(
                shard,
                scales=params.scales,
                seed=params.seed,
                out=Path(snakemake.output[0]),
                provenance=provenance,
            )
