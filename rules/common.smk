"""What every rules file shares: the checked config, paths, code digests, resources."""

import copy
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import yaml
from snakemake.cli import get_argument_parser
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import update_config
from snakemake_interface_executor_plugins.settings import SharedFSUsage

from selfrepair.figures import catalogue
from selfrepair.workflow.bar import Step, draw_run
from selfrepair.workflow.config import (
    at_hand,
    check_config,
    check_models,
    check_published,
    check_sources,
    check_targets,
    leave_out,
    main_kind,
    read_config_file,
    shard_names,
    shard_prompts,
    write_in_one_way,
)
from selfrepair.workflow.failures import failures
from selfrepair.workflow.graph import LOOKING
from selfrepair.workflow.logs import clear
from selfrepair.workflow.machine import memory_mb
from selfrepair.workflow.provenance import code_digest, module_digests
from selfrepair.workflow.records import edited, read_record, write_code
from selfrepair.workflow.plan import check_device, check_fits
from selfrepair.workflow.scheduler import check_arrays, check_gpus, check_queue, check_storage
from selfrepair.workflow.second_names import RUNNING, second_name
from selfrepair.workflow.resources import (
    AROUND_MB,
    UNKNOWN_MB,
    UNKNOWN_MINUTES,
    costs_of,
    share_of_cores,
    stated_rate,
)
from selfrepair.snapshots.manifest import json_or_nothing
from selfrepair.snapshots.shapes import every_head
from selfrepair.snapshots.sources import file_sizes, source_files, sources_of


wildcard_constraints:
    model="(?!all_models/)[^/]+",
    corpus="[^/]+",
    kind="resample|mean|zero",
    shard=r"\d+",


# How many of a group's jobs run side by side is a limit of the profile's: each of them takes a slot.
resource_scopes:
    slot="local",


# Paths. {model} and {corpus} are keys of the config, {shard} a run of prompts.
MODEL = "results/snapshots/models/{model}/manifest.json"
CORPUS = "results/snapshots/corpora/{corpus}/manifest.json"
RUN = "results/{model}/{corpus}"
TOKENS = f"{RUN}/tokens.h5"
PROMPTS = f"{RUN}/prompts.json"
ACTIVATIONS = f"{RUN}/activations/{{shard}}.h5"
THRESHOLDS = f"{RUN}/thresholds.h5"
MEAN_ACTIVATIONS = f"{RUN}/mean_activations.h5"
ABLATIONS = f"{RUN}/ablations/{{kind}}/{{shard}}.h5"
FROZEN_LAYERNORM = f"{RUN}/frozen_layernorm/{{kind}}/{{shard}}.h5"
OTHER_DONOR = f"{RUN}/other_donor/{{shard}}.h5"
DONOR_NOISE = f"{RUN}/donor_noise/{{shard}}.h5"
NEURONS = f"{RUN}/neurons/{{kind}}/{{shard}}.h5"
CHECKED_MODEL = "results/{model}/checked.json"
CHOSEN_HEADS = f"{RUN}/chosen_heads.json"
REINFORCEMENT = f"{RUN}/reinforcement/{{shard}}.h5"
MOVED_RESIDUAL = f"{RUN}/moved_residual/{{shard}}.h5"
LAYER_ABLATIONS = f"{RUN}/layer_ablations/{{shard}}.h5"
TABLE = f"{RUN}/tables/{{kind}}/{{table}}.parquet"
FIGURE = f"{RUN}/figures/{{figure}}.png"
FINDINGS = f"{RUN}/findings.md"
ALL_MODELS = "results/all_models/{corpus}"
ALL_MODELS_TABLE = f"{ALL_MODELS}/tables/{{kind}}/{{table}}.parquet"
ALL_MODELS_FIGURE = f"{ALL_MODELS}/figures/{{figure}}.png"
ALL_MODELS_FINDINGS = f"{ALL_MODELS}/findings.md"
EXPLORER = "results/explorer.html"
QUICK = f"{RUN}/quick"
QUICK_THRESHOLDS = f"{QUICK}/thresholds.h5"
QUICK_TABLE = f"{QUICK}/tables/{{kind}}/{{table}}.parquet"
QUICK_FIGURE = f"{QUICK}/figures/self_repair_by_layer.png"
PUBLISHED = os.path.relpath(HOME / "resources" / "published" / "self_repair_by_head.csv")
PUBLISHED_MODELS = os.path.relpath(HOME / "resources" / "published" / "models.json")
PUBLISHED_MODEL = "results/{model}/published.json"
LOGS = "logs/{model}/{corpus}"
BENCHMARKS = f"{RUN}/benchmarks"


def take_notes_where_a_run_died(as_given):
    """Have results looked at of which Snakemake may lack notes: it would take them for what it would make now."""
    notes, locks = Path(".snakemake/metadata"), Path(".snakemake/locks")
    lost = Path("results").exists() and not (notes.exists() and any(notes.iterdir()))
    running = locks.exists() and any(locks.iterdir())
    in_files = workflow.workflow_settings.persistence_backend.name.lower() == "file"
    if not (RUNNING.exists() or lost) or running or not in_files:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as overlay:
        yaml.safe_dump(as_given, overlay)
        overlay.flush()
        command = [sys.executable, "-m", "selfrepair", "take-notes", "--configfile", overlay.name]
        done = subprocess.run([*command, "--workflow", str(HOME)], stdout=sys.stderr)
    if done.returncode:
        raise ValueError(
            "Snakemake lacks notes of results, which could not be looked at for the reason above: mend it and run again, or "
            "remove results/ to begin anew"
        )


def asked_for():
    """What the command line asks for, which Snakemake tells no workflow before its rules are read."""
    if Path(sys.argv[0]).parent.name != "snakemake" and Path(sys.argv[0]).name != "snakemake":
        return []  # used as a library
    return get_argument_parser().parse_known_args(sys.argv[1:])[0].targets


# Another workflow has this one as a module (docs/module.md).
IMPORTED = not workflow.modifier.is_main_snakefile()


def over_the_default(given):
    """The config that a module is given, laid over the default, as an overlay is; the importing workflow keeps its own as it is."""
    laid = read_config_file(HOME / "config" / "config.yaml")
    update_config(laid, copy.deepcopy(dict(given)))
    return laid


def check_module():
    """Refuse what an importing workflow may ask of a module, and this one cannot do."""
    if not HOME.exists():
        address = str(HOME).replace(":/", "://", 1)
        raise ValueError(f"selfrepair is imported from {address}: clone it, and name the Snakefile in the clone")
    if workflow.modifier.path_modifier.replace_prefix("results/tokens.h5") != "results/tokens.h5":
        raise ValueError(
            "module selfrepair has a prefix, but its results stay below results/ of the working directory: leave prefix out"
        )


MACHINE_MB = memory_mb()
# Memory of a snapshot of texts, which are read one after another.
CORPUS_MB = 500

try:
    if " " in sys.executable:
        raise ValueError(f"Snakemake runs no Python whose path has a blank ({sys.executable}): move the environment")
    check_storage(
        workflow.storage_settings.default_storage_provider,
        SharedFSUsage.INPUT_OUTPUT in workflow.storage_settings.shared_fs_usage,
    )
    if IMPORTED:
        check_module()
        config = over_the_default(config)
    else:
        # Snakemake has read them, and taken the last of two keys.
        for _overlay in workflow.overwrite_configfiles:
            read_config_file(Path(_overlay))
    _as_given = copy.deepcopy(dict(config))
    leave_out(config)
    check_config(config, HOME / "config" / "config.schema.yaml")
    check_sources(config, {"models": MODEL.format(model="{name}"), "corpora": CORPUS.format(corpus="{name}")})
    check_published(config, MODEL.format(model="{name}"), Path(PUBLISHED_MODELS))
    check_models(config, MODEL.format(model="{name}"))
    if not IMPORTED:
        check_targets(asked_for(), config)
    write_in_one_way(config)
    if workflow.is_main_process and LOOKING not in os.environ:
        take_notes_where_a_run_died(_as_given)
except ValueError as error:
    # In a line, which Snakemake would put between two of where this is.
    print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(1) from None

# Prompts of a shard that can be donors of one of its prompts.
OTHERS = config["tokens"]["prompts_per_shard"] - 1
NOISE_DONORS = min(config["analyses"]["noise_donors"], OTHERS)
SHARDS = shard_names(config["tokens"]["prompts"], config["tokens"]["prompts_per_shard"])
KINDS = list(config["ablations"])
MAIN_KIND = main_kind(config["ablations"])


def heads_of(kind):
    """Heads that a kind ablates: all, chosen or a list; all, too, where these are listed."""
    heads = config["ablations"][kind]["heads"]
    every = [every_head(folder) for name in config["run"]["models"] for folder in model_folders(name)]
    listed = not isinstance(heads, str) and every and all(of and sorted(of) == sorted(heads) for of in every)
    return "all" if listed else heads


def model_folders(name):
    """The folder that says what a model is, where it is at hand already."""
    return at_hand(config["models"][name], Path(MODEL.format(model=name)))[:1]


HEADS = {kind: heads_of(kind) for kind in KINDS}
# What each kind computes: all tokens, or the top tokens of each head alone.
COMPUTED = {kind: config["ablations"][kind].get("tokens", "all") for kind in KINDS}


def each_shard(path):
    """The paths of all shards."""
    return expand(path, shard=SHARDS, allow_missing=True)


def table(name, kind=MAIN_KIND):
    """Path of a table of one kind of ablation."""
    return TABLE.format(table=name, kind=kind, model="{model}", corpus="{corpus}")


def quick_table(name, kind=MAIN_KIND):
    """Path of a table of the run's first shard."""
    return QUICK_TABLE.format(table=name, kind=kind, model="{model}", corpus="{corpus}")


def all_models_table(name):
    """Path of a table of all models, of the main kind of ablation."""
    return ALL_MODELS_TABLE.format(table=name, kind=MAIN_KIND, corpus="{corpus}")


# By the digest of a rule's code, the digests of its modules.
CODE = {}


def runs(name, *modules, makes=None, **values):
    """Params of a rule that runs scripts/{name}.py (docs/staleness.md).

    The script; the digest of what it imports, with modules that it picks by name; what has become of the files that it makes,
    where the first is not HDF5; its values of the config, which may be functions of the wildcards. Snakemake compares values
    without their names, so that two which are exchanged would go unseen: ``named`` has both."""
    digests = module_digests(HOME / "scripts" / f"{name}.py", *modules)
    code = code_digest(digests)
    CODE[code] = digests

    def named(wildcards):
        return [f"{key}={value(wildcards) if callable(value) else value!r}" for key, value in values.items()]

    more = {"named": named} if len(values) > 1 else {}
    if makes is not None:
        more["edited"] = lambda wildcards: edited(Path(makes.format(**wildcards)))
    return {"script": name, "code": code, **more, **values}


# Tables with a row a token, or a bin, which are megabytes: the report leaves them out.
LONG = {"token_noise", "ablation_type_tokens", "donor_noise_tokens", "erasure_neurons", "layernorm_scale_histogram"}


def beside(*tables):
    """The CSV beside each table, for the report."""
    return [in_report(Path(path)) for path in tables]


def in_report(table):
    """The CSV beside a table, marked for the report unless it is long."""
    csv = table.with_suffix(".csv").as_posix()
    if table.stem in LONG or "quick" in table.parts:
        return csv
    return report(
        csv,
        caption="../report/table.rst",
        category="Tables",
        subcategory="all models on {corpus}" if "all_models" in table.parts else "{model} on {corpus}",
        labels={"table": table.stem.replace("_", " "), "ablation": table.parent.name},
    )


def prompts_of(wildcards):
    """First prompt of the job's shard, and the one after its last."""
    return shard_prompts(wildcards.shard, config["tokens"])


NOT_IN_SNAPSHOT = ("published", "shape", "license")


def settings_of(section, name):
    """What a model or corpus is, by the job's wildcard; not what it is compared with, how large it is said to be, nor its licence."""

    def settings(wildcards):
        return {key: value for key, value in config[section][wildcards[name]].items() if key not in NOT_IN_SNAPSHOT}

    return settings


def asked_of_model(wildcards):
    """What the config asks of a model.

    As it was asked when the model was checked, where the model is at hand: what is asked now has been looked at already.
    """
    record = read_record(Path(CHECKED_MODEL.format(**wildcards)))
    if "config" in record and model_folders(wildcards.model):
        return record["config"]["asked"]
    shape = config["models"][wildcards.model].get("shape")
    return {
        "tokens": {"prompt_length": config["tokens"]["prompt_length"]},
        "ablations": {kind: {"heads": HEADS[kind]} for kind in KINDS},
        "analyses": {name: config["analyses"][name] for name in ("heads", "neuron_layer")},
        "models": {wildcards.model: {"shape": shape} if shape else {}},
    }


def model_files(wildcards):
    """The user's files that a model's snapshot reads."""
    sources = sources_of(config["models"][wildcards.model])
    return [file for source in sources for file in source_files(str(source), "model")]


def corpus_files(wildcards):
    """The user's files that a corpus's snapshot reads."""
    settings = config["corpora"][wildcards.corpus]
    return source_files(settings["source"], "corpus", format=settings.get("format"))


def listed(heads):
    """Heads of the config; None where no list is given."""
    return None if isinstance(heads, str) else heads


# All heads may be written as a list, and so may those that are chosen. Nothing is made again for that: a job is asked in the
# words in which those that are there were asked.


@cache
def heads_to_ablate(model, corpus, kind):
    """Heads that a kind ablates, None for all; as its first shard was asked for, where it is there and has the same."""
    heads = listed(HEADS[kind])
    first = Path(ABLATIONS.format(model=model, corpus=corpus, kind=kind, shard=SHARDS[0]))
    asked = read_record(first).get("config", {}).get("heads", heads)
    every = next((every_head(folder) for folder in model_folders(model)), None)
    same = every is not None and sorted(every if asked is None else asked) == sorted(every if heads is None else heads)
    return asked if same else heads


def heads_to_choose(wildcards):
    """Heads of the config, None where they are to be chosen; as they were asked for, where those that are there are the same.

    No more than a mark of what is stale: the job takes the config's.
    """
    heads, path = config["analyses"]["heads"], Path(CHOSEN_HEADS.format(**wildcards))
    made, record = json_or_nothing(path), read_record(path)
    if "config" not in record:
        return heads
    asked = record["config"]["heads"]
    if made.get("strongest") if heads is None else made.get("heads") == heads:
        return asked
    return "the strongest" if heads is None and asked is None else heads


def arrays():
    """Rules whose jobs Snakemake's Slurm plugin submits as arrays, as its setting names them; empty elsewhere."""
    return getattr(workflow.executor_settings, "array_jobs", None) or ""


def check_scheduler():
    """Refuse what a Slurm would refuse, or never end, after the first jobs."""
    rate = workflow.scheduling_settings.max_jobs_per_timespan
    check_arrays(
        arrays(),
        ready=len(SHARDS) * len(KINDS) * len(config["run"]["models"]) * len(config["run"]["corpora"]),
        jobs=workflow.resource_settings.nodes,
        per_second=rate and rate.max_jobs,
    )
    check_queue()
    if gpus():
        check_gpus()


def forget_second_names():
    """Leave a result its one name where Snakemake has noted the job: who asks for it once more wants it computed."""
    for job in workflow.dag.jobs:
        if job.params.get("script") != "ablate_heads":
            continue
        out = Path(job.output[0])
        if second_name(out).exists() and out.exists() and not workflow.async_run(workflow.persistence.incomplete(job)):
            second_name(out).unlink()


# Puts Snakemake's lines back where the bar of the run was.
TAKE_BAR_AWAY = []


def steps():
    """The jobs of the run by number, for its bar."""
    jobs = [job for job in workflow.dag.needrun_jobs() if job.output]
    return {workflow.dag.jobid(job): step(job) for job in jobs}


def step(job):
    """A job as the bar of the run shows it."""
    script = job.params.get("script") or job.rule.name
    stage = script.replace("_", " ").capitalize()
    if "shard" in job.wildcards.keys():
        kind = f" ({job.wildcards.kind})" if "kind" in job.wildcards.keys() else ""
        return Step(f"{stage}{kind}", lambda: seconds_of(script, job), Path(job.log[0]), "shard")
    stage = "Tables" if script.startswith("tabulate") else "Figures" if script == "draw_figure" else stage
    return Step(stage, lambda: seconds_of(script, job))


# By rule, model and kind of ablation.
SECONDS = {}


def seconds_of(script, job):
    """What a job takes, roughly; the run's own rate corrects it. None where nothing says yet how large the model is."""
    if script == "snapshot_corpus" or "code" not in job.params.keys():
        return 5
    like = (script, job.wildcards.get("model"), job.wildcards.get("kind"))
    if like not in SECONDS and (found := need(script, job.wildcards)):
        operations = found.operations / (2e12 * stated_rate(config["compute"]))
        SECONDS[like] = 2 + operations + (found.read + found.disk) / 2e8
    return SECONDS.get(like)


onstart:
    try:
        # A cluster's nodes are not this machine.
        if workflow.local_exec:
            check_device(config["compute"]["device"])
            check_fits(
                config, MODEL.format(model="{name}"), MACHINE_MB, workflow.resource_settings.overwrite_resources
            )
        elif workflow.executor_plugin.name == "slurm":
            check_scheduler()
    except ValueError as error:
        raise WorkflowError(str(error)) from None
    for _code, _modules in CODE.items():
        write_code(_modules, _code)
    forget_second_names()
    RUNNING.touch()
    TAKE_BAR_AWAY.append(draw_run(logger, steps()))


onsuccess:
    for _take_away in TAKE_BAR_AWAY:
        _take_away()
    clear(Path("logs"))
    forget_second_names()
    RUNNING.unlink(missing_ok=True)


onerror:
    for _take_away in TAKE_BAR_AWAY:
        _take_away()
    clear(Path("logs"))
    forget_second_names()
    RUNNING.unlink(missing_ok=True)
    for _line in failures(map(Path, log)):
        print(f"Failed: {_line}", file=sys.stderr)


def in_group(name):
    """On a cluster jobs of seconds go together: each group of them is one job of the scheduler's. Here they run one by one."""
    return lambda wildcards: None if workflow.local_exec else name


def gpus():
    """GPUs that a job which runs the model asks for."""
    return 0 if config["compute"]["device"] == "cpu" else 1


# On this machine one job at a time has the GPU, unless the command line or a profile says how many there are. Which executor
# runs the jobs is not known yet; all but those of this machine are told how many to have in the queue.
_here = workflow.is_main_process and workflow.resource_settings.nodes is None
if _here and gpus() and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", 1)


def need(rule, wildcards, text=0):
    """What a job of a rule needs, by formula; None where nothing says yet how large the model is. A job of all models needs what
    the largest of them does."""
    models = [wildcards.model] if "model" in wildcards.keys() else config["run"]["models"]
    costs = [costs_of(config["models"][name], Path(MODEL.format(model=name)), config) for name in models]
    if None in costs:
        return None
    # A figure, and a table of the main kind, have no kind in their paths. All jobs of an array get what the first asks for.
    kinds = KINDS if arrays() else [wildcards.get("kind", MAIN_KIND)]
    found = [of_model.of(rule, kind, text) for of_model in costs for kind in kinds]
    return max(found, key=lambda of_kind: (of_kind.mem_mb, of_kind.operations))


def resources(rule, slots=1):
    """Resources of a job of a model, memory and disk in MB, time in minutes; memory and time twice as much when it is tried
    again."""

    def text(input):
        documents = Path(input.get("corpus", "none")).with_name("documents.jsonl")
        return documents.stat().st_size if documents.exists() else 0

    def mem_mb(wildcards, input, attempt):
        found = need(rule, wildcards, text(input))
        around = 0 if workflow.local_exec else AROUND_MB
        return attempt * (around + (found.mem_mb if found else UNKNOWN_MB))

    def disk_mb(wildcards):
        found = need(rule, wildcards)
        return found.disk_mb if found else UNKNOWN_MB

    def runtime(wildcards, input, threads, attempt):
        found = need(rule, wildcards, text(input))
        return attempt * (found.minutes(config["compute"], threads) if found else UNKNOWN_MINUTES)

    return {"mem_mb": mem_mb, "disk_mb": disk_mb, "runtime": runtime, "slot": slots}


def model_job(rule):
    """Resources of a job that runs the model on a shard; on GPUs in the partition that the profile names for them."""
    defaults = workflow.resource_settings.default_resources
    named = dict(each.split("=", 1) for each in getattr(defaults, "args", ()))
    partition = {"slurm_partition": named["gpu_partition"]} if gpus() and "gpu_partition" in named else {}
    return {**resources(rule), **partition, "gpu": gpus()}


def model_threads(rule):
    """Threads of a job that runs the model: one, or as large a share of the cores as it takes of the memory."""
    alone = rule == "ablate_heads" and asked_for() == ["quick"]

    def threads(wildcards):
        found = need(rule, wildcards)
        cores = 1 if gpus() or not workflow.local_exec else workflow.global_resources["_cores"].value or 1
        if alone:  # for one shard, with nothing to run beside it
            return cores
        return share_of_cores(found.mem_mb, MACHINE_MB, cores) if found else 1

    return threads


# What self_repair_by_layer is made from goes before all else, but checks: it is the figure to see first.
FIRST = 50


def main_kind_first(wildcards):
    """Priority of a job of a kind of ablation."""
    return FIRST if wildcards.kind == MAIN_KIND else 0


def clean_runs_first(wildcards, input):
    """Priority of a clean run; rules that inherit from it start from one, and are not the first."""
    return 0 if "activations" in input.keys() else FIRST


def statistics(*names):
    """Settings of means and intervals."""
    return {name: config["statistics"][name] for name in names}


def mean_activations_if_needed(wildcards):
    """The averages that mean ablation puts in a head's place; nothing for the other kinds."""
    return MEAN_ACTIVATIONS.format(**wildcards) if wildcards.kind == "mean" else []


def chosen_heads_if_needed(wildcards):
    """The chosen heads, for a kind of ablation that takes these alone."""
    return CHOSEN_HEADS.format(**wildcards) if HEADS[wildcards.kind] == "chosen" else []


def of_each_run(path, **wildcards):
    """A path for every model and corpus of the run."""
    return expand(path, model=config["run"]["models"], corpus=config["run"]["corpora"], **wildcards)


EXPLORED_RUNS = [[model, corpus] for model in config["run"]["models"] for corpus in config["run"]["corpora"]]


def of_explored_runs(*paths):
    """Paths of every run of the explorer, run by run."""
    return [path.format(model=model, corpus=corpus) for model, corpus in EXPLORED_RUNS for path in paths]


def of_all_models(path, **wildcards):
    """A path of all models together for every corpus of the run; none where the run has one model."""
    return expand(path, corpus=config["run"]["corpora"], **wildcards) if len(config["run"]["models"]) > 1 else []


def weights_of(model):
    """What a caption calls the weights of a model."""
    return config["models"][model].get("weights", "as its source has them")


def run_settings(wildcards):
    """What captions say of how a run was made, whatever its model."""
    tokens, statistics = config["tokens"], config["statistics"]
    predictions = tokens["prompt_length"] - 1 - statistics["first_position"]
    return {
        "corpus": wildcards.corpus,
        "ablation": MAIN_KIND,
        "n_prompts": tokens["prompts"],
        "prompt_length": tokens["prompt_length"],
        "n_tokens": tokens["prompts"] * predictions,
        "donors": tokens["donors"],
        "confidence": 0.95,
        **{key: statistics[key] for key in ("top_fraction", "first_position", "n_bootstrap")},
    }


def caption_settings(wildcards):
    """What a caption says of how its figure was made."""
    return {"model": wildcards.model, "weights": weights_of(wildcards.model), **run_settings(wildcards)}


def all_models_settings(wildcards):
    """What a caption of a figure of all models says of how it was made."""
    models = [f"{model} ({weights_of(model)})" for model in config["run"]["models"]]
    return {"models": ", ".join(models), **run_settings(wildcards)}
