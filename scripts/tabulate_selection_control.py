"""Measure self-repair on tokens chosen in several ways."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.selection_control import tabulate_selection_control

        tabulate_selection_control(
            heads_table=Path(snakemake.input.heads),
            ablations=[Path(path) for path in snakemake.input.ablations],
            other_donor=[Path(path) for path in snakemake.input.other_donor],
            thresholds=Path(snakemake.input.thresholds),
            layers_out=Path(snakemake.output.layers),
            model_out=Path(snakemake.output.model_mean),
        )
