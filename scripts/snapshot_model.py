"""Take a self-contained snapshot of a model."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake, offline=False):
        from selfrepair.snapshots.models import snapshot_model

        snapshot_model(Path(snakemake.output.manifest), **snakemake.params.snapshot)
