"""Take the share of direct effect that LayerNorm repairs in each of its readings."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.layernorm_claim import tabulate_layernorm_claim

        tabulate_layernorm_claim(
            heads_table=Path(snakemake.input.heads),
            shards=[Path(path) for path in snakemake.input.ablations],
            thresholds=Path(snakemake.input.thresholds),
            published=Path(snakemake.input.published),
            out=Path(snakemake.output.claim),
        )
