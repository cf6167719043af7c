"""Ablate the heads that are looked at once more, and keep who repairs them prompt by prompt, on one shard."""

from pathlib import Path

from selfrepair.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.traced_repair import trace_repair_of_shard

        mean_activations = snakemake.input.get("mean_activations")
        trace_repair_of_shard(
            model_manifest=Path(snakemake.input.model),
            tokens=Path(snakemake.input.tokens),
            activations=Path(snakemake.input.activations),
            thresholds=Path(snakemake.input.thresholds),
            mean_activations=Path(mean_activations) if mean_activations else None,
            chosen_heads=Path(snakemake.input.chosen),
            strongest_pairs=Path(snakemake.input.pairs),
            out=Path(snakemake.output.traced),
            prompts=snakemake.params.prompts,
            kind=snakemake.params.kind,
            compute=snakemake.params.compute,
            provenance=provenance,
        )
