"""How components answer one another: heads to their own output, the next layer, who repairs whom, whole layers ablated.

Inputs: a model snapshot, tokens.h5, the shard's activations, thresholds.h5, chosen_heads.json, ablations and table heads of the
main kind.
Outputs: reinforcement/{shard}.h5, moved_residual/{shard}.h5, layer_ablations/{shard}.h5; tables self_reinforcement,
repair_by_layer, repair_rows, repair_pairs, next_layer_correlation, next_layer_heads and layer_ablation.
Steps: reinforce_heads, condense_reinforcement; tabulate_repair; move_residual, correlate_next_layer; ablate_layers,
condense_layer_ablation.
"""


rule reinforce_heads:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
        thresholds=THRESHOLDS,
    output:
        reinforcement=REINFORCEMENT,
    log:
        f"{LOGS}/reinforce_heads/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/reinforce_heads/{{shard}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=4 * 60,
        gpu=gpus(),
    params:
        prompts=prompts_of,
        scales=config["analyses"]["reinforcement_scales"],
        seed=config["tokens"]["seed"],
        compute=config["compute"],
        code=code("reinforce_heads"),
    message:
        "Add outputs of heads of {wildcards.model} to their inputs on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/reinforce_heads.py"


rule condense_reinforcement:
    input:
        reinforcement=each_shard(REINFORCEMENT),
        heads=table("heads"),
    output:
        table=table("self_reinforcement"),
    log:
        f"{LOGS}/condense_reinforcement.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=15,
    params:
        statistics={key: config["statistics"][key] for key in ("n_bootstrap", "bootstrap_seed")},
        code=code("condense_reinforcement"),
    message:
        "Condense self-reinforcement of heads of {wildcards.model}"
    script:
        "../scripts/condense_reinforcement.py"


rule tabulate_repair:
    input:
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
        heads=table("heads"),
    output:
        by_layer=table("repair_by_layer"),
        rows=table("repair_rows"),
        pairs=table("repair_pairs"),
    log:
        f"{LOGS}/tabulate_repair.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=15,
    params:
        statistics={key: config["statistics"][key] for key in ("n_bootstrap", "bootstrap_seed")},
        code=code("tabulate_repair"),
    message:
        "Condense who repairs whom in {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/tabulate_repair.py"


rule move_residual:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
    output:
        moved=MOVED_RESIDUAL,
    log:
        f"{LOGS}/move_residual/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/move_residual/{{shard}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=60,
        gpu=gpus(),
    params:
        prompts=prompts_of,
        compute=config["compute"],
        code=code("move_residual"),
    message:
        "Move the residual stream of {wildcards.model} one layer down on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/move_residual.py"


rule correlate_next_layer:
    input:
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        moved=each_shard(MOVED_RESIDUAL),
        heads=table("heads"),
    output:
        correlations=table("next_layer_correlation"),
        next_heads=table("next_layer_heads"),
    log:
        f"{LOGS}/correlate_next_layer.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=15,
    params:
        statistics={key: config["statistics"][key] for key in ("n_bootstrap", "bootstrap_seed")},
        code=code("correlate_next_layer"),
    message:
        "Correlate changes of the next layer's heads of {wildcards.model}"
    script:
        "../scripts/correlate_next_layer.py"


rule ablate_layers:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
    output:
        ablations=LAYER_ABLATIONS,
    log:
        f"{LOGS}/ablate_layers/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/ablate_layers/{{shard}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=12 * 60,
        gpu=gpus(),
    params:
        prompts=prompts_of,
        compute=config["compute"],
        code=code("ablate_layers"),
    message:
        "Ablate layers of {wildcards.model} on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/ablate_layers.py"


rule condense_layer_ablation:
    input:
        ablations=each_shard(LAYER_ABLATIONS),
        heads=table("heads"),
    output:
        table=table("layer_ablation", kind="resample"),
    log:
        f"{LOGS}/condense_layer_ablation.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=15,
    params:
        statistics={key: config["statistics"][key] for key in ("first_position", "n_bootstrap", "bootstrap_seed")},
        code=code("condense_layer_ablation"),
    message:
        "Condense ablations of layers of {wildcards.model}"
    script:
        "../scripts/condense_layer_ablation.py"
