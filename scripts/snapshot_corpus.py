"""Take a self-contained snapshot of a corpus."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake, offline=False):
        from selfrepair.snapshots.corpora import snapshot_corpus

        # No param: another licence makes nothing again. The report has that of the config.
        license = snakemake.config["corpora"][snakemake.wildcards.corpus].get("license")
        snapshot_corpus(Path(snakemake.output.manifest), license=license, **snakemake.params.snapshot)
