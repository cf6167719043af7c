"""Snapshots: the only stage that may use the network. Run on the machine that starts the workflow.

Inputs: sources named under models and corpora in the config.
Outputs: a folder with everything that later stages read, and its manifest; checked.json of each model.
Steps: snapshot_model, check_model; snapshot_corpus.
"""


rule snapshot_model:
    input:
        model_files,
    output:
        manifest=MODEL,
    log:
        "logs/snapshots/models/{model}.log",
    localrule: True
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("snapshot_model"),
    params:
        **runs(
            "snapshot_model",
            makes=MODEL,
            snapshot=settings_of("models", "model"),
            # Another file under an old name, older than the snapshot.
            sizes=lambda wildcards: file_sizes(model_files(wildcards)),
        ),
    message:
        "Take a snapshot of model {wildcards.model}"
    script:
        "../scripts/{params.script}.py"


rule check_model:
    input:
        model=MODEL,
    output:
        checked=CHECKED_MODEL,
    log:
        "logs/{model}/check_model.log",
    # Before any shard, though none reads it: what the model has not is said at once.
    priority: 100
    localrule: True
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("check_model"),
    params:
        **runs("check_model", makes=CHECKED_MODEL, asked=asked_of_model),
    message:
        "Check that model {wildcards.model} has what is asked of it"
    script:
        "../scripts/{params.script}.py"


rule snapshot_corpus:
    input:
        corpus_files,
    output:
        manifest=CORPUS,
    log:
        "logs/snapshots/corpora/{corpus}.log",
    localrule: True
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: attempt * CORPUS_MB,
        disk_mb=CORPUS_MB,
        runtime=60,
    params:
        **runs(
            "snapshot_corpus",
            makes=CORPUS,
            snapshot=settings_of("corpora", "corpus"),
            # Another file under an old name, older than the snapshot.
            sizes=lambda wildcards: file_sizes(corpus_files(wildcards)),
        ),
    message:
        "Take a snapshot of corpus {wildcards.corpus}"
    script:
        "../scripts/{params.script}.py"
