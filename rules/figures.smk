"""Figures, each drawn from finished tables only, with its caption for the report; and what they show, in words.

Inputs: tables, and the published values where they stand beside this run's.
Outputs: figures/{figure}.png and .svg, findings.md.
Steps: one rule a figure, draw_{figure}; all run scripts/draw_figure.py with the figure's own module. write_findings.
Which tables a figure takes, and which figures a config has, stands in srcpkg/selfrepair/figures/catalogue.py.
"""

# The tables that each figure and its section of the findings are made from.
FIGURES = {
    figure: {
        key: PUBLISHED if name == catalogue.PUBLISHED else table(name, kind) for key, (name, kind) in tables.items()
    }
    for figure, tables in catalogue.figures_of(
        catalogue.Asked(
            main=MAIN_KIND,
            heads=HEADS,
            computed=COMPUTED,
            donors=config["tokens"]["donors"],
            others=OTHERS,
            noise_donors=NOISE_DONORS,
        )
    ).items()
}


for _name, _tables in FIGURES.items():

    rule:
        name:
            f"draw_{_name}"
        input:
            **_tables,
        output:
            png=report(
                FIGURE.format(figure=_name, model="{model}", corpus="{corpus}"),
                caption=f"../report/{_name}.rst",
                category=catalogue.CATALOGUE[_name].category,
                subcategory="{model} on {corpus}",
                labels={"figure": _name.replace("_", " ")},
            ),
            svg=FIGURE.format(figure=_name, model="{model}", corpus="{corpus}").replace(".png", ".svg"),
        log:
            f"{LOGS}/draw_{_name}.log",
        priority: FIRST if _name == "self_repair_by_layer" else 0
        group:
            in_group("tables")
        conda:
            "../environment.yml"
        threads: 1
        resources:
            **resources("draw_figure"),
        params:
            **runs(
                "draw_figure",
                f"selfrepair.figures.{_name}",
                makes=FIGURE.format(figure=_name, model="{model}", corpus="{corpus}"),
                figure=_name,
                settings=caption_settings,
            ),
        message:
            "Draw {params.figure} for {wildcards.model} on {wildcards.corpus}"
        script:
            "../scripts/{params.script}.py"


rule write_findings:
    input:
        **{f"{name}_tables": list(tables.values()) for name, tables in FIGURES.items()},
        heads=table("heads"),
        checks=table("checks"),
        figures=expand(FIGURE, figure=FIGURES, allow_missing=True),
    output:
        findings=report(
            FINDINGS,
            category="Findings",
            subcategory="{model} on {corpus}",
            labels={"text": "findings"},
        ),
    log:
        f"{LOGS}/write_findings.log",
    group:
        in_group("tables")
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("write_findings"),
    params:
        **runs(
            "write_findings",
            *(f"selfrepair.figures.{name}" for name in FIGURES),
            makes=FINDINGS,
            tables={name: list(tables) for name, tables in FIGURES.items()},
        ),
    message:
        "Write down the findings for {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"
