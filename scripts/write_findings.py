"""Write down what every figure shows."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.figures.findings import write_findings

        files = {figure: snakemake.input[f"{figure}_tables"] for figure in snakemake.params.tables}
        write_findings(
            heads=Path(snakemake.input.heads),
            checks=Path(snakemake.input.checks),
            tables={
                figure: {name: Path(path) for name, path in zip(names, files[figure], strict=True)}
                for figure, names in snakemake.params.tables.items()
            },
            figures=[Path(path) for path in snakemake.input.figures],
            out=Path(snakemake.output.findings),
        )
