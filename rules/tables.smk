"""Tables: means over tokens with intervals, and the tokens of a few heads.

Inputs: ablations of one kind, thresholds.h5.
Outputs: tables/{kind}/{heads,layers,model,token_noise,checks}.parquet, and a CSV beside each; chosen_heads.json.
Steps: condense_ablations, choose_heads, tabulate_tokens; tabulate_checks, of every measurement.
"""

# Measurements that repeat some of their ablations by plain runs of the whole model, with the rule of each.
PROVEN = {
    "ablations": (ABLATIONS, KINDS, "ablate_heads"),
    "frozen_layernorm": (FROZEN_LAYERNORM, [MAIN_KIND], "freeze_layernorm"),
    "neurons": (NEURONS, [MAIN_KIND], "measure_neurons"),
    "layer_ablations": (LAYER_ABLATIONS, [MAIN_KIND], "ablate_layers"),
    "reinforcement": (REINFORCEMENT, [MAIN_KIND], "reinforce_heads"),
    "moved_residual": (MOVED_RESIDUAL, [MAIN_KIND], "move_residual"),
}
if MAIN_KIND == "resample" and NOISE_DONORS > 1:
    PROVEN["donor_noise"] = (DONOR_NOISE, [MAIN_KIND], "ablate_with_donors")


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


rule tabulate_checks:
    input:
        **{
            name: expand(path, kind=kinds, shard=SHARDS, allow_missing=True)
            for name, (path, kinds, _) in PROVEN.items()
        },
        heads=table("heads"),
    output:
        checks=table("checks"),
    log:
        f"{LOGS}/tabulate_checks.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        remake={name: rule for name, (*_, rule) in PROVEN.items()},
        code=code("tabulate_checks"),
    message:
        "Gather how far measurements of {wildcards.model} are from plain runs of the whole model"
    script:
        "../scripts/tabulate_checks.py"
