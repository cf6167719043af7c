"""Condense the ablations of one kind into tables with intervals."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.heads import tabulate_heads

        tabulate_heads(
            model_manifest=Path(snakemake.input.model),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            tables={
                "heads": Path(snakemake.output.heads),
                "layers": Path(snakemake.output.layers),
                "model": Path(snakemake.output.model_mean),
            },
            labels={
                "model": snakemake.wildcards.model,
                "corpus": snakemake.wildcards.corpus,
                "ablation": snakemake.wildcards.kind,
                "top_fraction": snakemake.params.top_fraction,
                "donors": snakemake.params.donors,
                # Of a part of the run alone (rules/quick.smk).
                **snakemake.params.get("part", {}),
            },
            **snakemake.params.statistics,
        )
