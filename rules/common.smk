"""What every rules file shares: the checked config, paths, code digests, resources."""

import os
from pathlib import Path

from snakemake.exceptions import WorkflowError

from selfrepair.config import check_config, shard_names, shard_prompts
from selfrepair.provenance import code_digest

try:
    check_config(config, Path(workflow.basedir) / "config" / "config.schema.yaml")
except ValueError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    model="[^/]+",
    corpus="[^/]+",
    kind="resample|mean|zero",
    shard=r"\d+",


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
TABLE = f"{RUN}/tables/{{kind}}/{{table}}.parquet"
FIGURE = f"{RUN}/figures/{{figure}}.png"
PUBLISHED = os.path.relpath(Path(workflow.basedir) / "resources" / "published" / "self_repair_by_head.csv")
LOGS = "logs/{model}/{corpus}"
BENCHMARKS = f"{RUN}/benchmarks"

SHARDS = shard_names(config["tokens"])
KINDS = list(config["ablations"])
MAIN_KIND = "resample" if "resample" in KINDS else KINDS[0]


def each_shard(path):
    """The paths of all shards."""
    return expand(path, shard=SHARDS, allow_missing=True)


def code(script, *modules):
    """Digest of what scripts/{script}.py runs (docs/staleness.md), and of modules that it picks by name."""
    return code_digest(Path(workflow.basedir) / "scripts" / f"{script}.py", *modules)


def prompts_of(wildcards):
    """First prompt of the job's shard, and the one after its last."""
    return shard_prompts(wildcards.shard, config["tokens"])


def settings_of(section, name):
    """A model's or corpus's own settings, by the job's wildcard."""
    return lambda wildcards: config[section][wildcards[name]]


def listed(heads):
    """Heads of the config, None meaning all."""
    return None if heads == "all" else heads


def gpus():
    """GPUs that a job which runs the model asks for."""
    return 1 if config["compute"]["device"].startswith("cuda") else 0
