"""Check that the text holds as many prompts as the config asks for."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.measure.tokens import check_prompts

        check_prompts(
            tokens=Path(snakemake.input.tokens),
            out=Path(snakemake.output.prompts),
            prompts=snakemake.params.prompts,
        )
