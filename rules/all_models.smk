"""All models of the run side by side, on one text: made where run.models names more than one.

Inputs: each model's tables, which are joined.
Outputs: below results/all_models/{corpus}: tables/{kind}/{table}.parquet, figures/{figure}.png and .svg, findings.md.
Steps: tabulate_all_models; one rule a figure, draw_{figure}; write_models_findings.
"""

# By the joined table, what it is joined of.
JOINED = {
    **{name: table(name) for name in ("heads", "layers", "model", "checks")},
    "distributions": table("published_distributions"),
}
# The joined tables that each figure and its section of the findings are made from.
MODELS_FIGURES = {name: list(entry.tables) for name, entry in catalogue.OF_MODELS.items()}


rule tabulate_all_models:
    input:
        **{name: expand(path, model=config["run"]["models"], allow_missing=True) for name, path in JOINED.items()},
    output:
        **{name: all_models_table(name) for name in JOINED},
        csv=beside(*map(all_models_table, JOINED)),
    log:
        "logs/all_models/{corpus}/tabulate_all_models.log",
    group:
        in_group("all_models")
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("tabulate_all_models"),
    params:
        **runs("tabulate_all_models", makes=all_models_table(next(iter(JOINED)))),
    message:
        "Join the tables of all models on {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"


for _name, _tables in MODELS_FIGURES.items():

    rule:
        name:
            f"draw_{_name}"
        input:
            **{name: all_models_table(name) for name in _tables},
        output:
            png=report(
                ALL_MODELS_FIGURE.format(figure=_name, corpus="{corpus}"),
                caption=f"../report/{_name}.rst",
                category=catalogue.OF_MODELS[_name].category,
                subcategory="all models on {corpus}",
                labels={"figure": _name.replace("_", " ")},
            ),
            svg=ALL_MODELS_FIGURE.format(figure=_name, corpus="{corpus}").replace(".png", ".svg"),
        log:
            f"logs/all_models/{{corpus}}/draw_{_name}.log",
        group:
            in_group("all_models")
        conda:
            "../environment.yml"
        threads: 1
        resources:
            **resources("draw_figure"),
        params:
            **runs(
                "draw_figure",
                f"selfrepair.figures.{_name}",
                makes=ALL_MODELS_FIGURE.format(figure=_name, corpus="{corpus}"),
                figure=_name,
                settings=all_models_settings,
            ),
        message:
            "Draw {params.figure} for all models on {wildcards.corpus}"
        script:
            "../scripts/{params.script}.py"


rule write_models_findings:
    input:
        **{name: all_models_table(name) for name in JOINED},
        figures=expand(ALL_MODELS_FIGURE, figure=MODELS_FIGURES, allow_missing=True),
    output:
        findings=report(
            ALL_MODELS_FINDINGS,
            category="Findings",
            subcategory="all models on {corpus}",
            labels={"text": "findings"},
        ),
    log:
        "logs/all_models/{corpus}/write_models_findings.log",
    group:
        in_group("all_models")
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("write_findings"),
    params:
        **runs(
            "write_models_findings",
            *(f"selfrepair.figures.{name}" for name in MODELS_FIGURES),
            makes=ALL_MODELS_FINDINGS,
            tables=MODELS_FIGURES,
        ),
    message:
        "Write down the findings for all models on {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"
