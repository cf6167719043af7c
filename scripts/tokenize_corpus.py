"""Cut a corpus into prompts with donors."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake) as provenance:
        from selfrepair.measure.tokens import tokenize_corpus

        tokenize_corpus(
            model_manifest=Path(snakemake.input.model),
            corpus_manifest=Path(snakemake.input.corpus),
            out=Path(snakemake.output.tokens),
            provenance=provenance,
            **snakemake.params.tokens,
        )
