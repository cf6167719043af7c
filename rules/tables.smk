"""Tables: means over tokens with intervals, and the tokens of a few heads.

Inputs: ablations of one kind, thresholds.h5.
Outputs: tables/{kind}/{heads,layers,model,token_noise}.parquet, and a CSV beside each.
Steps: condense_ablations, tabulate_tokens.
"""


rule condense_ablations:
    input:
        model=MODEL,
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
    output:
        heads=expand(TABLE, table="heads", allow_missing=True),
        layers=expand(TABLE, table="layers", allow_missing=True),
        model_mean=expand(TABLE, table="model", allow_missing=True),
    log:
        f"{LOGS}/condense_ablations/{{kind}}.log",
    params:
        statistics={key: config["statistics"][key] for key in ("first_position", "n_bootstrap", "bootstrap_seed")},
        top_fraction=config["statistics"]["top_fraction"],
        donors=config["tokens"]["donors"],
        code=code("condense_ablations"),
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    message:
        "Condense {wildcards.kind} ablations of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/condense_ablations.py"


rule tabulate_tokens:
    input:
        heads=expand(TABLE, table="heads", allow_missing=True),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
    output:
        tokens=expand(TABLE, table="token_noise", allow_missing=True),
    log:
        f"{LOGS}/tabulate_tokens/{{kind}}.log",
    params:
        heads=config["figures"]["token_noise"]["heads"],
        first_position=config["statistics"]["first_position"],
        code=code("tabulate_tokens"),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    message:
        "List every token of a few heads of {wildcards.model}"
    script:
        "../scripts/tabulate_tokens.py"
