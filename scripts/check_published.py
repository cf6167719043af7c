"""Check that the model is the published one which it is compared with."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.snapshots.published import check_published

        check_published(
            model_manifest=Path(snakemake.input.model),
            facts=Path(snakemake.input.facts),
            model=snakemake.wildcards.model,
            published=snakemake.params.published,
            out=Path(snakemake.output.checked),
        )
