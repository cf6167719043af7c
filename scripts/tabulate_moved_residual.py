"""Correlate what a head's ablation and what a moved residual stream change in the next layer."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.moved_residual import tabulate_moved_residual

        tabulate_moved_residual(
            ablations=[Path(path) for path in snakemake.input.ablations],
            moved=[Path(path) for path in snakemake.input.moved],
            heads_table=Path(snakemake.input.heads),
            tables={"correlations": Path(snakemake.output.correlations), "heads": Path(snakemake.output.next_heads)},
        )
