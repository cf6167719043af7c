"""The clean run: cached a shard at a time, and what is selected and averaged over all shards.

Inputs: a model snapshot, tokens.h5.
Outputs: activations/{shard}.h5, thresholds.h5 (top tokens of each head), mean_activations.h5 (for mean ablation).
Steps: cache_activations, select_top_tokens, average_activations.
"""


rule cache_activations:
    input:
        model=MODEL,
        tokens=TOKENS,
    output:
        activations=ACTIVATIONS,
    log:
        f"{LOGS}/cache_activations/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/cache_activations/{{shard}}.tsv"
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
        code=code("cache_activations"),
    message:
        "Cache the clean run of {wildcards.model} on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/cache_activations.py"


rule select_top_tokens:
    input:
        activations=each_shard(ACTIVATIONS),
        # Here and not before the clean runs: a check for more prompts must not make finished shards stale.
        checked=PROMPTS,
    output:
        thresholds=THRESHOLDS,
    log:
        f"{LOGS}/select_top_tokens.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        selection={key: config["statistics"][key] for key in ("top_fraction", "first_position")},
        code=code("select_top_tokens"),
    message:
        "Find the top tokens of every head of {wildcards.model} in {wildcards.corpus}"
    script:
        "../scripts/select_top_tokens.py"


rule average_activations:
    input:
        activations=each_shard(ACTIVATIONS),
    output:
        mean_activations=MEAN_ACTIVATIONS,
    log:
        f"{LOGS}/average_activations.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        code=code("average_activations"),
    message:
        "Average every head's activations of {wildcards.model} over {wildcards.corpus}"
    script:
        "../scripts/average_activations.py"
