"""Take a self-contained snapshot of a corpus."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake, offline=False):
        from selfrepair.snapshots.corpora import snapshot_corpus

        snapshot_corpus(Path(snakemake.output.manifest), **snakemake.params.snapshot)
