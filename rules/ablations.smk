"""The sweep: every head ablated alone on a shard of prompts, and what compensates.

Inputs: a model snapshot, tokens.h5, the shard's activations, thresholds.h5, mean_activations.h5 for mean ablation, and
chosen_heads.json for a kind that takes the chosen heads alone.
Outputs: ablations/{kind}/{shard}.h5.
Steps: ablate_heads.
"""


rule ablate_heads:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
        thresholds=THRESHOLDS,
        mean_activations=mean_activations_if_needed,
        chosen=chosen_heads_if_needed,
    output:
        ablations=ABLATIONS,
    log:
        f"{LOGS}/ablate_heads/{{kind}}/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/ablate_heads/{{kind}}/{{shard}}.tsv"
    # One thread a job: as many shards at a time as there are cores is faster than one shard on all of them.
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=24 * 60,
        gpu=gpus(),
    params:
        prompts=prompts_of,
        heads=lambda wildcards: listed(HEADS[wildcards.kind]),
        which=lambda wildcards: COMPUTED[wildcards.kind],
        compute=config["compute"],
        code=code("ablate_heads"),
    message:
        "Ablate heads of {wildcards.model} ({wildcards.kind}) on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/ablate_heads.py"
