"""Measurements: prompts, their clean run, what is selected and averaged over it, and every ablation, a shard at a time.

Inputs: a model snapshot and a corpus snapshot.
Outputs: tokens.h5 with every prompt that the text holds and its donors; prompts.json, written when there are enough;
activations/{shard}.h5; thresholds.h5 (top tokens of each head), mean_activations.h5 (for mean ablation), chosen_heads.json;
ablations/{kind}, frozen_layernorm/{kind}, neurons/{kind}, other_donor, donor_noise, reinforcement, moved_residual and
layer_ablations/{shard}.h5.
Steps: tokenize_corpus, check_prompts; cache_activations; find_thresholds, average_activations; ablate_heads; choose_heads, by
the main kind of ablation; and what else is measured of a shard, each of which is a rule like cache_activations with more inputs.
"""

# What every measurement of a shard reads; most take the top tokens too.
OF_SHARD = {"model": MODEL, "tokens": TOKENS, "activations": ACTIVATIONS}
OF_TOP_TOKENS = {**OF_SHARD, "thresholds": THRESHOLDS}


rule tokenize_corpus:
    input:
        model=MODEL,
        corpus=CORPUS,
    output:
        tokens=TOKENS,
    log:
        f"{LOGS}/tokenize_corpus.log",
    benchmark:
        f"{BENCHMARKS}/tokenize_corpus.tsv"
    priority: FIRST
    group:
        in_group("prompts")
    conda:
        "../environment.yml"
    threads: 2
    resources:
        **resources("tokenize_corpus", slots=2),
    params:
        **runs(
            "tokenize_corpus",
            # The number of prompts is left out: the file holds all, so that more prompts later keep the shards done before.
            tokens={key: config["tokens"][key] for key in ("prompt_length", "prompts_per_shard", "donors", "seed")},
        ),
    message:
        "Cut {wildcards.corpus} into prompts for {wildcards.model}"
    script:
        "../scripts/{params.script}.py"


rule check_prompts:
    input:
        tokens=TOKENS,
    output:
        prompts=PROMPTS,
    log:
        f"{LOGS}/check_prompts.log",
    # Before any shard: what cannot be had is said at once.
    priority: 100
    group:
        in_group("prompts")
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("check_prompts"),
    params:
        **runs(
            "check_prompts",
            makes=PROMPTS,
            prompts=config["tokens"]["prompts"],
        ),
    message:
        "Check that {wildcards.corpus} holds {params.prompts} prompts"
    script:
        "../scripts/{params.script}.py"


rule cache_activations:
    input:
        model=MODEL,
        tokens=TOKENS,
    output:
        activations=ACTIVATIONS,
    log:
        f"{LOGS}/cache_activations/{{shard}}.log",
    priority: clean_runs_first
    conda:
        "../environment.yml"
    # As many shards at a time as there are cores is faster than one shard on all of them.
    threads: model_threads("cache_activations")
    resources:
        **model_job("cache_activations"),
    params:
        **runs(
            "cache_activations",
            prompts=prompts_of,
            compute=config["compute"],
        ),
    message:
        "Cache the clean run of {wildcards.model} on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"


rule find_thresholds:
    input:
        activations=each_shard(ACTIVATIONS),
        # Here and not before the clean runs: a check for more prompts must not make finished shards stale.
        checked=PROMPTS,
    output:
        thresholds=THRESHOLDS,
    log:
        f"{LOGS}/find_thresholds.log",
    benchmark:
        f"{BENCHMARKS}/find_thresholds.tsv"
    priority: FIRST
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("find_thresholds"),
    params:
        **runs("find_thresholds", **statistics("top_fraction", "first_position")),
    message:
        "Find the top tokens of every head of {wildcards.model} in {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"


rule average_activations:
    input:
        activations=each_shard(ACTIVATIONS),
    output:
        mean_activations=MEAN_ACTIVATIONS,
    log:
        f"{LOGS}/average_activations.log",
    benchmark:
        f"{BENCHMARKS}/average_activations.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("average_activations"),
    params:
        **runs("average_activations"),
    message:
        "Average every head's activations of {wildcards.model} over {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"


use rule cache_activations as ablate_heads with:
    input:
        **OF_TOP_TOKENS,
        mean_activations=mean_activations_if_needed,
        chosen=chosen_heads_if_needed,
    output:
        ablations=ABLATIONS,
    log:
        f"{LOGS}/ablate_heads/{{kind}}/{{shard}}.log",
    priority: main_kind_first
    threads: model_threads("ablate_heads")
    resources:
        **model_job("ablate_heads"),
    params:
        **runs(
            "ablate_heads",
            heads=lambda wildcards: heads_to_ablate(wildcards.model, wildcards.corpus, wildcards.kind),
            which=lambda wildcards: COMPUTED[wildcards.kind],
        ),
    message:
        "Ablate heads of {wildcards.model} ({wildcards.kind}) on shard {wildcards.shard} of {wildcards.corpus}"


rule choose_heads:
    input:
        # Not table heads: which heads are chosen does not depend on how intervals are made.
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        thresholds=THRESHOLDS,
    output:
        chosen=CHOSEN_HEADS,
    log:
        f"{LOGS}/choose_heads.log",
    benchmark:
        f"{BENCHMARKS}/choose_heads.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("choose_heads"),
    params:
        **runs(
            "choose_heads",
            makes=CHOSEN_HEADS,
            heads=heads_to_choose,
        ),
    message:
        "Choose the heads of {wildcards.model} to look at one by one"
    script:
        "../scripts/{params.script}.py"


use rule cache_activations as freeze_layernorm with:
    input:
        **OF_TOP_TOKENS,
        mean_activations=mean_activations_if_needed,
        chosen=CHOSEN_HEADS,
    output:
        frozen=FROZEN_LAYERNORM,
    log:
        f"{LOGS}/freeze_layernorm/{{kind}}/{{shard}}.log",
    threads: model_threads("freeze_layernorm")
    resources:
        **model_job("freeze_layernorm"),
    params:
        **runs("freeze_layernorm"),
    message:
        "Ablate chosen heads of {wildcards.model} with the final scale frozen on shard {wildcards.shard} of {wildcards.corpus}"


use rule cache_activations as measure_neurons with:
    input:
        **OF_TOP_TOKENS,
        mean_activations=mean_activations_if_needed,
        chosen=CHOSEN_HEADS,
    output:
        neurons=NEURONS,
    log:
        f"{LOGS}/measure_neurons/{{kind}}/{{shard}}.log",
    threads: model_threads("measure_neurons")
    resources:
        **model_job("measure_neurons"),
    params:
        **runs(
            "measure_neurons",
            neuron_layer=config["analyses"]["neuron_layer"],
            top_neurons=config["analyses"]["top_neurons"],
        ),
    message:
        "Measure neurons of {wildcards.model} ({wildcards.kind}) on shard {wildcards.shard} of {wildcards.corpus}"


use rule cache_activations as project_other_donor with:
    input:
        **OF_SHARD,
    output:
        other_donor=OTHER_DONOR,
    log:
        f"{LOGS}/project_other_donor/{{shard}}.log",
    # Short: it fills a core while what the first figure is made from waits for another.
    priority: 10
    threads: model_threads("project_other_donor")
    resources:
        **model_job("project_other_donor"),
    params:
        **runs("project_other_donor"),
    message:
        "Project another donor of {wildcards.model} on shard {wildcards.shard} of {wildcards.corpus}"


use rule cache_activations as measure_donor_noise with:
    input:
        **OF_TOP_TOKENS,
        chosen=CHOSEN_HEADS,
    output:
        donor_noise=DONOR_NOISE,
    log:
        f"{LOGS}/measure_donor_noise/{{shard}}.log",
    threads: model_threads("measure_donor_noise")
    resources:
        **model_job("measure_donor_noise"),
    params:
        **runs("measure_donor_noise", donors=NOISE_DONORS),
    message:
        "Ablate the chosen heads of {wildcards.model} with each of several donors alone on shard {wildcards.shard}"


use rule cache_activations as reinforce_heads with:
    input:
        **OF_TOP_TOKENS,
    output:
        reinforcement=REINFORCEMENT,
    log:
        f"{LOGS}/reinforce_heads/{{shard}}.log",
    threads: model_threads("reinforce_heads")
    resources:
        **model_job("reinforce_heads"),
    params:
        **runs(
            "reinforce_heads",
            scales=config["analyses"]["reinforcement_scales"],
            seed=config["tokens"]["seed"],
        ),
    message:
        "Add outputs of heads of {wildcards.model} to their inputs on shard {wildcards.shard} of {wildcards.corpus}"


use rule cache_activations as move_residual with:
    input:
        **OF_TOP_TOKENS,
        chosen=CHOSEN_HEADS,
    output:
        moved=MOVED_RESIDUAL,
    log:
        f"{LOGS}/move_residual/{{shard}}.log",
    threads: model_threads("move_residual")
    resources:
        **model_job("move_residual"),
    params:
        **runs("move_residual"),
    message:
        "Move the residual stream of {wildcards.model} one layer down on shard {wildcards.shard} of {wildcards.corpus}"


use rule cache_activations as ablate_layers with:
    input:
        **OF_SHARD,
    output:
        ablations=LAYER_ABLATIONS,
    log:
        f"{LOGS}/ablate_layers/{{shard}}.log",
    threads: model_threads("ablate_layers")
    resources:
        **model_job("ablate_layers"),
    params:
        **runs("ablate_layers"),
    message:
        "Ablate layers of {wildcards.model} on shard {wildcards.shard} of {wildcards.corpus}"
