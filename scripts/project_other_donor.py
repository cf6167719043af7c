"""Project another donor's activations of every head for one shard."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.other_donor import measure_other_donor
        from selfrepair.measure.shard import open_shard

        inputs, params = dict(snakemake.input.items()), snakemake.params
        with open_shard(inputs, prompts=params.prompts, compute=params.compute) as shard:
            measure_other_donor(
                shard,
                out=Path(snakemake.output[0]),
                provenance=provenance,
            )
