"""Neurons: which neurons of one MLP repair the chosen heads, and whether by erasing less (Anti-Erasure).

Inputs: a model snapshot, tokens.h5, the shard's activations, thresholds.h5, chosen_heads.json, mean_activations.h5 for mean
ablation; table heads for its settings.
Outputs: neurons/{kind}/{shard}.h5; tables/{kind}/{neuron_share,neuron_concentration,erasure_neurons,erasure_quadrants,
neuron_consistency}.parquet, and a CSV beside each.
Steps: measure_neurons, condense_neurons.
"""


rule measure_neurons:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
        thresholds=THRESHOLDS,
        mean_activations=mean_activations_if_needed,
        chosen=CHOSEN_HEADS,
    output:
        neurons=NEURONS,
    log:
        f"{LOGS}/measure_neurons/{{kind}}/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/measure_neurons/{{kind}}/{{shard}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=60,
        gpu=gpus(),
    params:
        prompts=prompts_of,
        neuron_layer=config["analyses"]["neuron_layer"],
        top_neurons=config["analyses"]["top_neurons"],
        compute=config["compute"],
        code=code("measure_neurons"),
    message:
        "Measure neurons of {wildcards.model} ({wildcards.kind}) on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/measure_neurons.py"


rule condense_neurons:
    input:
        neurons=each_shard(NEURONS),
        heads=table("heads", kind="{kind}"),
    output:
        neuron_share=table("neuron_share", kind="{kind}"),
        neuron_concentration=table("neuron_concentration", kind="{kind}"),
        erasure_neurons=table("erasure_neurons", kind="{kind}"),
        erasure_quadrants=table("erasure_quadrants", kind="{kind}"),
        neuron_consistency=table("neuron_consistency", kind="{kind}"),
    log:
        f"{LOGS}/condense_neurons/{{kind}}.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        code=code("condense_neurons"),
    message:
        "Condense what the neurons of {wildcards.model} repair on {wildcards.corpus} ({wildcards.kind})"
    script:
        "../scripts/condense_neurons.py"
