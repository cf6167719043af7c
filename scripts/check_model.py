"""Check that a model has what the config asks of it."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.snapshots.checked import check_model

        check_model(
            model_manifest=Path(snakemake.input.model),
            model=snakemake.wildcards.model,
            asked=snakemake.params.asked,
            out=Path(snakemake.output.checked),
        )
