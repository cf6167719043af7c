"""Take a self-contained snapshot of a model."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake, offline=False):
        from selfrepair.snapshots.models import snapshot_model

        # No param: another licence makes nothing again. The report has that of the config.
        license = snakemake.config["models"][snakemake.wildcards.model].get("license")
        snapshot_model(Path(snakemake.output.manifest), license=license, **snakemake.params.snapshot)
