"""Set this run beside the paper's published values."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.published import tabulate_published

        tabulate_published(
            heads_table=Path(snakemake.input.heads),
            published=Path(snakemake.input.published),
            model=snakemake.params.published,
            pairs_out=Path(snakemake.output.pairs),
            agreement_out=Path(snakemake.output.agreement),
            distributions_out=Path(snakemake.output.distributions),
        )
