"""Prompts from text.

Inputs: a model snapshot (its tokenizer) and a corpus snapshot.
Outputs: tokens.h5 with every prompt that the text holds and its donors; prompts.json, written when there are enough.
Steps: tokenize_corpus, check_prompts.
"""


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
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        # The number of prompts is left out: the file holds all, so that more prompts later keep the shards done before.
        tokens={key: config["tokens"][key] for key in ("prompt_length", "prompts_per_shard", "donors", "seed")},
        code=code("tokenize_corpus"),
    message:
        "Cut {wildcards.corpus} into prompts for {wildcards.model}"
    script:
        "../scripts/tokenize_corpus.py"


rule check_prompts:
    input:
        tokens=TOKENS,
    output:
        prompts=PROMPTS,
    log:
        f"{LOGS}/check_prompts.log",
    # Before any shard: what cannot be had is said at once.
    priority: 100
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=5,
    params:
        prompts=config["tokens"]["prompts"],
        code=code("check_prompts"),
    message:
        "Check that {wildcards.corpus} holds {params.prompts} prompts"
    script:
        "../scripts/check_prompts.py"
