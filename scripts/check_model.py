"""Check that a model has what the config asks of it."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.workflow.config import check_model

        check_model(
            snakemake.params.asked,
            model=snakemake.wildcards.model,
            manifest=Path(snakemake.input.model),
            out=Path(snakemake.output.checked),
        )
