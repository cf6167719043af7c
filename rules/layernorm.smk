"""The final norm: how its scale changes, what that repairs, and the same with the scale really frozen.

Inputs: a model snapshot, tokens.h5, activations, thresholds.h5, ablations and table heads of one kind, chosen_heads.json, the
published values.
Outputs: frozen_layernorm/{kind}/{shard}.h5; tables/{kind}/{layernorm_scale_ratio,layernorm_scale_histogram,ablation_type,
ablation_type_tokens,layernorm_claim,frozen_layernorm}.parquet, and a CSV beside each.
Steps: tabulate_scale_ratios, tabulate_ablation_type, tabulate_layernorm_claim; freeze_layernorm, compare_frozen_layernorm.
"""


rule tabulate_scale_ratios:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
    output:
        ratios=table("layernorm_scale_ratio", kind="{kind}"),
        histogram=table("layernorm_scale_histogram", kind="{kind}"),
    log:
        f"{LOGS}/tabulate_scale_ratios/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=15,
    params:
        code=code("tabulate_scale_ratios"),
    message:
        "Count final scales of {wildcards.model} under {wildcards.kind} ablation"
    script:
        "../scripts/tabulate_scale_ratios.py"


rule tabulate_ablation_type:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
    output:
        tokens=table("ablation_type_tokens", kind="{kind}"),
        means=table("ablation_type", kind="{kind}"),
    log:
        f"{LOGS}/tabulate_ablation_type/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=15,
    params:
        code=code("tabulate_ablation_type"),
    message:
        "List {wildcards.kind} ablation of the strongest chosen head of {wildcards.model}"
    script:
        "../scripts/tabulate_ablation_type.py"


rule tabulate_layernorm_claim:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        published=PUBLISHED,
    output:
        claim=table("layernorm_claim", kind="{kind}"),
    log:
        f"{LOGS}/tabulate_layernorm_claim/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=15,
    params:
        code=code("tabulate_layernorm_claim"),
    message:
        "Take the share that LayerNorm repairs in {wildcards.model} in each of its readings"
    script:
        "../scripts/tabulate_layernorm_claim.py"


rule freeze_layernorm:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
        thresholds=THRESHOLDS,
        mean_activations=mean_activations_if_needed,
        chosen=CHOSEN_HEADS,
    output:
        frozen=FROZEN_LAYERNORM,
    log:
        f"{LOGS}/freeze_layernorm/{{kind}}/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/freeze_layernorm/{{kind}}/{{shard}}.tsv"
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
        code=code("freeze_layernorm"),
    message:
        "Ablate chosen heads of {wildcards.model} with the final scale frozen on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/freeze_layernorm.py"


rule compare_frozen_layernorm:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
        frozen=each_shard(FROZEN_LAYERNORM),
    output:
        frozen=table("frozen_layernorm", kind="{kind}"),
    log:
        f"{LOGS}/compare_frozen_layernorm/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=15,
    params:
        code=code("compare_frozen_layernorm"),
    message:
        "Compare the closed form of the LayerNorm part of {wildcards.model} with frozen runs"
    script:
        "../scripts/compare_frozen_layernorm.py"
