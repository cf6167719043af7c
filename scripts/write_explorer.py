"""Write the page that shows every head and token of all models in their texts."""

from pathlib import Path

from selfrepair.workflow.jobs import job

if __name__ == "__main__":
    with job(snakemake):
        from selfrepair.explorer import write_explorer
        from selfrepair.explorer.payload import RunFiles

        given, tables, shards = snakemake.input, snakemake.params.tables, iter(snakemake.input.ablations)
        files = iter(given.tables)
        runs = [
            RunFiles(
                model=model,
                corpus=corpus,
                kinds=list(tables),
                tables={kind: {name: Path(next(files)) for name in names} for kind, names in tables.items()},
                shards={kind: [Path(next(shards)) for _ in snakemake.params.shards] for kind in tables},
                thresholds=Path(thresholds),
                tokens=Path(tokens),
                chosen_heads=Path(chosen),
                snapshot=Path(manifest).parent,
            )
            for (model, corpus), thresholds, tokens, chosen, manifest in zip(
                snakemake.params.runs, given.thresholds, given.tokens, given.chosen_heads, given.models, strict=True
            )
        ]
        write_explorer(runs, published=Path(given.published), out=Path(snakemake.output.page))
