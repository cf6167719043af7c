"""Join the tables of all models of the run on one text."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.tables.all_models import join_models

        for name, paths in snakemake.input.items():
            join_models(tables=[Path(path) for path in paths], out=Path(snakemake.output[name]))
