"""Draw one figure from its tables."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.figures import draw_figure

        draw_figure(
            snakemake.params.figure,
            tables={name: Path(path) for name, path in snakemake.input.items()},
            png=Path(snakemake.output.png),
            svg=Path(snakemake.output.svg),
        )
