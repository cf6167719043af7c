"""Tables: means over tokens with intervals, condensed from measured files; one rule a measurement or control.

Inputs: measured files, thresholds.h5, chosen_heads.json; resources/published for what stands beside the paper's own values.
Outputs: tables/{kind}/{table}.parquet, and a CSV beside each; published.json of each model.
Steps: tabulate_checks, of every measurement, which the others are like; tabulate_heads, which most others read; then one a
measurement. check_published comes before any shard.
"""

# Measurements that repeat some of their ablations by plain runs of the whole model, and their kinds of ablation.
PROVEN = {
    "ablations": (ABLATIONS, KINDS),
    "frozen_layernorm": (FROZEN_LAYERNORM, [MAIN_KIND]),
    "neurons": (NEURONS, [MAIN_KIND]),
    "layer_ablations": (LAYER_ABLATIONS, [MAIN_KIND]),
    "reinforcement": (REINFORCEMENT, [MAIN_KIND]),
    "moved_residual": (MOVED_RESIDUAL, [MAIN_KIND]),
}
if MAIN_KIND == "resample" and NOISE_DONORS > 1:
    PROVEN["donor_noise"] = (DONOR_NOISE, [MAIN_KIND])


rule tabulate_checks:
    input:
        **{name: expand(path, kind=kinds, shard=SHARDS, allow_missing=True) for name, (path, kinds) in PROVEN.items()},
        heads=table("heads"),
    output:
        checks=table("checks"),
        csv=beside(
            table("checks"),
        ),
    log:
        f"{LOGS}/tabulate_checks.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_checks.tsv"
    group:
        in_group("tables")
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("tabulate_checks"),
    params:
        **runs("tabulate_checks", makes=table("checks")),
    message:
        "Gather how far measurements of {wildcards.model} are from plain runs of the whole model"
    script:
        "../scripts/{params.script}.py"


use rule tabulate_checks as tabulate_heads with:
    input:
        model=MODEL,
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
    output:
        heads=table("heads", kind="{kind}"),
        layers=table("layers", kind="{kind}"),
        model_mean=table("model", kind="{kind}"),
        csv=beside(
            table("heads", kind="{kind}"),
            table("layers", kind="{kind}"),
            table("model", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_heads/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_heads/{{kind}}.tsv"
    priority: main_kind_first
    resources:
        **resources("tabulate_heads"),
    params:
        **runs(
            "tabulate_heads",
            makes=table("heads", kind="{kind}"),
            statistics=statistics("first_position", "n_bootstrap", "bootstrap_seed"),
            top_fraction=config["statistics"]["top_fraction"],
            donors=config["tokens"]["donors"],
        ),
    message:
        "Condense {wildcards.kind} ablations of {wildcards.model} on {wildcards.corpus}"


use rule tabulate_checks as tabulate_token_noise with:
    input:
        chosen=CHOSEN_HEADS,
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
    output:
        tokens=table("token_noise", kind="{kind}"),
        spread=table("token_spread", kind="{kind}"),
        csv=beside(
            table("token_noise", kind="{kind}"),
            table("token_spread", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_token_noise/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_token_noise/{{kind}}.tsv"
    resources:
        **resources("tabulate_token_noise"),
    params:
        **runs("tabulate_token_noise", makes=table("token_noise", kind="{kind}")),
    message:
        "List tokens of the chosen heads of {wildcards.model}"


use rule tabulate_checks as tabulate_layernorm_scale with:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
    output:
        ratios=table("layernorm_scale_ratio", kind="{kind}"),
        histogram=table("layernorm_scale_histogram", kind="{kind}"),
        csv=beside(
            table("layernorm_scale_ratio", kind="{kind}"),
            table("layernorm_scale_histogram", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_layernorm_scale/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_layernorm_scale/{{kind}}.tsv"
    resources:
        **resources("tabulate_layernorm_scale"),
    params:
        **runs("tabulate_layernorm_scale", makes=table("layernorm_scale_ratio", kind="{kind}")),
    message:
        "Count final scales of {wildcards.model} under {wildcards.kind} ablation"


use rule tabulate_checks as tabulate_ablation_type with:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
    output:
        tokens=table("ablation_type_tokens", kind="{kind}"),
        means=table("ablation_type", kind="{kind}"),
        csv=beside(
            table("ablation_type_tokens", kind="{kind}"),
            table("ablation_type", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_ablation_type/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_ablation_type/{{kind}}.tsv"
    resources:
        **resources("tabulate_ablation_type"),
    params:
        **runs("tabulate_ablation_type", makes=table("ablation_type_tokens", kind="{kind}")),
    message:
        "List {wildcards.kind} ablation of the strongest chosen head of {wildcards.model}"


use rule tabulate_checks as tabulate_layernorm_claim with:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        published=PUBLISHED,
    output:
        claim=table("layernorm_claim", kind="{kind}"),
        csv=beside(
            table("layernorm_claim", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_layernorm_claim/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_layernorm_claim/{{kind}}.tsv"
    resources:
        **resources("tabulate_layernorm_claim"),
    params:
        **runs("tabulate_layernorm_claim", makes=table("layernorm_claim", kind="{kind}")),
    message:
        "Take the share that LayerNorm repairs in {wildcards.model} in each of its readings"


use rule tabulate_checks as tabulate_frozen_layernorm with:
    input:
        heads=table("heads", kind="{kind}"),
        ablations=each_shard(ABLATIONS),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
        frozen=each_shard(FROZEN_LAYERNORM),
    output:
        frozen=table("frozen_layernorm", kind="{kind}"),
        csv=beside(
            table("frozen_layernorm", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_frozen_layernorm/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_frozen_layernorm/{{kind}}.tsv"
    resources:
        **resources("tabulate_frozen_layernorm"),
    params:
        **runs("tabulate_frozen_layernorm", makes=table("frozen_layernorm", kind="{kind}")),
    message:
        "Compare the closed form of the LayerNorm part of {wildcards.model} with frozen runs"


use rule tabulate_checks as tabulate_neurons with:
    input:
        neurons=each_shard(NEURONS),
        heads=table("heads", kind="{kind}"),
    output:
        neuron_share=table("neuron_share", kind="{kind}"),
        neuron_concentration=table("neuron_concentration", kind="{kind}"),
        erasure_neurons=table("erasure_neurons", kind="{kind}"),
        erasure_quadrants=table("erasure_quadrants", kind="{kind}"),
        neuron_consistency=table("neuron_consistency", kind="{kind}"),
        csv=beside(
            table("neuron_share", kind="{kind}"),
            table("neuron_concentration", kind="{kind}"),
            table("erasure_neurons", kind="{kind}"),
            table("erasure_quadrants", kind="{kind}"),
            table("neuron_consistency", kind="{kind}"),
        ),
    log:
        f"{LOGS}/tabulate_neurons/{{kind}}.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_neurons/{{kind}}.tsv"
    resources:
        **resources("tabulate_neurons"),
    params:
        **runs("tabulate_neurons", makes=table("neuron_share", kind="{kind}")),
    message:
        "Condense what the neurons of {wildcards.model} repair on {wildcards.corpus} ({wildcards.kind})"


use rule tabulate_checks as tabulate_reinforcement with:
    input:
        reinforcement=each_shard(REINFORCEMENT),
        heads=table("heads"),
    output:
        table=table("self_reinforcement"),
        csv=beside(
            table("self_reinforcement"),
        ),
    log:
        f"{LOGS}/tabulate_reinforcement.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_reinforcement.tsv"
    resources:
        **resources("tabulate_reinforcement"),
    params:
        **runs("tabulate_reinforcement", makes=table("self_reinforcement")),
    message:
        "Condense self-reinforcement of heads of {wildcards.model}"


use rule tabulate_checks as tabulate_repair with:
    input:
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        thresholds=THRESHOLDS,
        chosen=CHOSEN_HEADS,
        heads=table("heads"),
    output:
        by_layer=table("repair_by_layer"),
        rows=table("repair_rows"),
        pairs=table("repair_pairs"),
        csv=beside(
            table("repair_by_layer"),
            table("repair_rows"),
            table("repair_pairs"),
        ),
    log:
        f"{LOGS}/tabulate_repair.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_repair.tsv"
    resources:
        **resources("tabulate_repair"),
    params:
        **runs("tabulate_repair", makes=table("repair_by_layer")),
    message:
        "Condense who repairs whom in {wildcards.model} on {wildcards.corpus}"


use rule tabulate_checks as tabulate_moved_residual with:
    input:
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        moved=each_shard(MOVED_RESIDUAL),
        heads=table("heads"),
    output:
        correlations=table("next_layer_correlation"),
        next_heads=table("next_layer_heads"),
        csv=beside(
            table("next_layer_correlation"),
            table("next_layer_heads"),
        ),
    log:
        f"{LOGS}/tabulate_moved_residual.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_moved_residual.tsv"
    resources:
        **resources("tabulate_moved_residual"),
    params:
        **runs("tabulate_moved_residual", makes=table("next_layer_correlation")),
    message:
        "Correlate changes of the next layer's heads of {wildcards.model}"


use rule tabulate_checks as tabulate_layer_ablations with:
    input:
        ablations=each_shard(LAYER_ABLATIONS),
        heads=table("heads"),
    output:
        table=table("layer_ablation", kind="resample"),
        csv=beside(
            table("layer_ablation", kind="resample"),
        ),
    log:
        f"{LOGS}/tabulate_layer_ablations.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_layer_ablations.tsv"
    resources:
        **resources("tabulate_layer_ablations"),
    params:
        **runs("tabulate_layer_ablations", makes=table("layer_ablation", kind="resample")),
    message:
        "Condense ablations of layers of {wildcards.model}"


use rule tabulate_checks as tabulate_selection_control with:
    input:
        heads=table("heads"),
        ablations=expand(each_shard(ABLATIONS), kind=MAIN_KIND, allow_missing=True),
        other_donor=each_shard(OTHER_DONOR),
        thresholds=THRESHOLDS,
    output:
        layers=table("selection_control_layers"),
        model_mean=table("selection_control_model"),
        csv=beside(
            table("selection_control_layers"),
            table("selection_control_model"),
        ),
    log:
        f"{LOGS}/tabulate_selection_control.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_selection_control.tsv"
    resources:
        **resources("tabulate_selection_control"),
    params:
        **runs("tabulate_selection_control", makes=table("selection_control_layers")),
    message:
        "Measure self-repair of {wildcards.model} on tokens chosen in several ways"


use rule tabulate_checks as tabulate_donor_noise with:
    input:
        heads=table("heads"),
        donor_noise=each_shard(DONOR_NOISE),
        chosen=CHOSEN_HEADS,
    output:
        heads=table("donor_noise"),
        tokens=table("donor_noise_tokens"),
        csv=beside(
            table("donor_noise"),
            table("donor_noise_tokens"),
        ),
    log:
        f"{LOGS}/tabulate_donor_noise.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_donor_noise.tsv"
    resources:
        **resources("tabulate_donor_noise"),
    params:
        **runs("tabulate_donor_noise", makes=table("donor_noise")),
    message:
        "Compare donors with tokens for the chosen heads of {wildcards.model}"


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
    localrule: True
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **resources("check_published"),
    params:
        **runs(
            "check_published",
            makes=PUBLISHED_MODEL,
            published=lambda wildcards: config["models"][wildcards.model].get("published"),
        ),
    message:
        "Check which published model {wildcards.model} is"
    script:
        "../scripts/{params.script}.py"


use rule tabulate_checks as tabulate_published with:
    input:
        heads=table("heads"),
        published=PUBLISHED,
        checked=PUBLISHED_MODEL,
    output:
        pairs=table("published_pairs"),
        agreement=table("published_agreement"),
        distributions=table("published_distributions"),
        csv=beside(
            table("published_pairs"),
            table("published_agreement"),
            table("published_distributions"),
        ),
    log:
        f"{LOGS}/tabulate_published.log",
    benchmark:
        f"{BENCHMARKS}/tabulate_published.tsv"
    resources:
        **resources("tabulate_published"),
    params:
        **runs(
            "tabulate_published",
            makes=table("published_pairs"),
            published=lambda wildcards: config["models"][wildcards.model].get("published"),
        ),
    message:
        "Set {wildcards.model} beside the published values"
