"""Controls: what of self-repair is the choice of tokens, and what the donors'; and this run beside the paper's own values.

Inputs: a model snapshot, tokens.h5, activations, ablations of the main kind, thresholds.h5, chosen_heads.json, table heads;
resources/published.
Outputs: other_donor/{shard}.h5, donor_noise/{shard}.h5; tables/{kind}/{selection_control_layers,selection_control_model,
donor_noise,donor_noise_tokens,published_pairs,published_agreement,published_distributions}.parquet, and a CSV beside each; published.json of each model.
Steps: project_other_donor, tabulate_selection_control; ablate_with_donors, tabulate_donor_noise; check_published,
compare_published.
"""


rule project_other_donor:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
    output:
        other_donor=OTHER_DONOR,
    log:
        f"{LOGS}/project_other_donor/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/project_other_donor/{{shard}}.tsv"
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
        code=code("project_other_donor"),
    message:
        "Project another donor of {wildcards.model} on shard {wildcards.shard} of {wildcards.corpus}"
    script:
        "../scripts/project_other_donor.py"


rule tabulate_selection_control:
    input:
        heads=table("heads"),
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        other_donor=each_shard(OTHER_DONOR),
        thresholds=THRESHOLDS,
    output:
        layers=table("selection_control_layers"),
        model_mean=table("selection_control_model"),
    log:
        f"{LOGS}/tabulate_selection_control.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=60,
    params:
        first_position=config["statistics"]["first_position"],
        code=code("tabulate_selection_control"),
    message:
        "Measure self-repair of {wildcards.model} on tokens chosen in several ways"
    script:
        "../scripts/tabulate_selection_control.py"


rule ablate_with_donors:
    input:
        model=MODEL,
        tokens=TOKENS,
        activations=ACTIVATIONS,
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
    output:
        donor_noise=DONOR_NOISE,
    log:
        f"{LOGS}/ablate_with_donors/{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/ablate_with_donors/{{shard}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=6 * 60,
        gpu=gpus(),
    params:
        prompts=prompts_of,
        donors=NOISE_DONORS,
        compute=config["compute"],
        code=code("ablate_with_donors"),
    message:
        "Ablate the chosen heads of {wildcards.model} with each of several donors on shard {wildcards.shard}"
    script:
        "../scripts/ablate_with_donors.py"


rule tabulate_donor_noise:
    input:
        heads=table("heads"),
        donor_noise=each_shard(DONOR_NOISE),
        chosen=CHOSEN_HEADS,
    output:
        heads=table("donor_noise"),
        tokens=table("donor_noise_tokens"),
    log:
        f"{LOGS}/tabulate_donor_noise.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        code=code("tabulate_donor_noise"),
    message:
        "Compare donors with tokens for the chosen heads of {wildcards.model}"
    script:
        "../scripts/tabulate_donor_noise.py"


rule check_published:
    input:
        model=MODEL,
        facts=PUBLISHED_MODELS,
    output:
        checked=PUBLISHED_MODEL,
    log:
        "logs/{model}/check_published.log",
    # Before any shard: a model that is another is said at once.
    priority: 100
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=5,
    params:
        published=lambda wildcards: config["models"][wildcards.model].get("published"),
        code=code("check_published"),
    message:
        "Check which published model {wildcards.model} is"
    script:
        "../scripts/check_published.py"


rule compare_published:
    input:
        heads=table("heads"),
        published=PUBLISHED,
        checked=PUBLISHED_MODEL,
    output:
        pairs=table("published_pairs"),
        agreement=table("published_agreement"),
        distributions=table("published_distributions"),
    log:
        f"{LOGS}/compare_published.log",
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        published=lambda wildcards: config["models"][wildcards.model].get("published"),
        code=code("compare_published"),
    message:
        "Set {wildcards.model} beside the published values"
    script:
        "../scripts/compare_published.py"
