"""Write down what the figures of all models show."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.figures.findings import write_findings

        write_findings(
            heads=Path(snakemake.input.heads),
            checks=Path(snakemake.input.checks),
            tables={
                figure: {name: Path(snakemake.input[name]) for name in names}
                for figure, names in snakemake.params.tables.items()
            },
            figures=[Path(path) for path in snakemake.input.figures],
            out=Path(snakemake.output.findings),
        )
