"""Tables: means over tokens with intervals, and the tokens of a few heads.

Inputs: ablations of one kind, thresholds.h5.
Outputs: tables/{kind}/{heads,layers,model,token_noise}.parquet, and a CSV beside each; chosen_heads.json.
Steps: condense_ablations, choose_heads, tabulate_tokens.
"""


rule condense_ablations:
    input:
        model=MODEL,
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
    output:
        heads=table("heads", kind="{kind}"),
        layers=table("layers", kind="{kind}"),
        model_mean=table("model", kind="{kind}"),
    log:
        f"{LOGS}/condense_ablations/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        statistics={key: config["statistics"][key] for key in ("first_position", "n_bootstrap", "bootstrap_seed")},
        top_fraction=config["statistics"]["top_fraction"],
        donors=config["tokens"]["donors"],
        code=code("condense_ablations"),
    message:
        "Condense {wildcards.kind} ablations of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/condense_ablations.py"


rule choose_heads:
    input:
        heads=table("heads"),
    output:
        chosen=CHOSEN_HEADS,
    log:
        f"{LOGS}/choose_heads.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=5,
    params:
        heads=config["analyses"]["heads"],
        code=code("choose_heads"),
    message:
        "Choose the heads of {wildcards.model} to look at one by one"
    script:
        "../scripts/choose_heads.py"


rule tabulate_tokens:
    input:
        chosen=CHOSEN_HEADS,
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
    output:
        tokens=table("token_noise", kind="{kind}"),
    log:
        f"{LOGS}/tabulate_tokens/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=15,
    params:
        first_position=config["statistics"]["first_position"],
        code=code("tabulate_tokens"),
    message:
        "List every token of the chosen heads of {wildcards.model}"
    script:
        "../scripts/tabulate_tokens.py"
