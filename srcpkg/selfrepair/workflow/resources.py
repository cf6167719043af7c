"""What every job needs, by formula: memory, disk, operations and time, from the model's sizes and the config.

Rules take their ``mem_mb``, ``disk_mb``, ``runtime`` and ``threads`` from here, and `selfrepair plan` adds them up. Formulas of
memory are held to measured peaks by tests/workflow/test_resources.py, those of operations to `selfrepair.model.flops` by
tests/unit/workflow/test_resources.py. MB are 10^6 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from selfrepair.snapshots.manifest import json_or_nothing
from selfrepair.snapshots.shapes import Shape, shape_of_folder, shape_of_settings
from selfrepair.snapshots.sources import joined_name, sources_of

Amount = int | float
"""Of bytes or operations."""

MB = 10**6
NUMBER = {"float32": 4, "float64": 8, "bfloat16": 2}
"""Bytes of a number."""
BATCH_TOKENS, ACCELERATOR_BATCH_TOKENS = 1024, 16384
"""Tokens that go through the layers at a time: those of `selfrepair.model.model`, which would import torch."""
PER_TOKEN = 12
"""Numbers a head and token in an ablations file, at most: post-norms, experts and caps have some of their own."""
CHOSEN = 4
"""Heads that are looked at one by one, where `analyses.heads` names none."""

MEMORY_MARGIN = 1.15
"""Memory asked for, relative to the formula: other versions of libraries, other allocators."""
RATES = {
    ("cpu", "float32"): 0.05,
    ("cpu", "float64"): 0.025,
    ("cpu", "bfloat16"): 0.05,
    ("cuda", "float32"): 20.0,
    ("cuda", "float64"): 5.0,
    ("cuda", "bfloat16"): 100.0,
}
"""Rate that time limits are computed from, in TFLOP/s: of one thread of an ordinary CPU, and of a data centre's GPU; half of
what docs/performance.md has or less."""
TIME_MARGIN = 3
"""Time limit, relative to the operations at that rate: a busy machine, and what is no matrix product."""
START_SECONDS = 120
"""Imports on a slow file system."""
BYTES_A_SECOND = 50 * MB
"""Of files that are read, written and checked, likewise."""


@dataclass(frozen=True)
class Need:
    """What one job needs.

    Attributes:
        memory: Bytes by what holds them, the largest at one time.
        gpu_memory: The same on the GPU; empty where the job uses none.
        disk: Bytes that it writes.
        kept: Bytes that it writes beside its result and takes away when that is whole (`selfrepair.files.kept`).
        read: Bytes that it reads.
        operations: Floating-point operations of matrix products.
        tokens: Tokens of its prompts; 0 where it has none.
    """

    memory: Mapping[str, Amount]
    gpu_memory: Mapping[str, Amount] = field(default_factory=dict)
    disk: Amount = 0
    kept: Amount = 0
    read: Amount = 0
    operations: Amount = 0
    tokens: int = 0

    def minutes(self, compute: Mapping[str, Any], threads: int = 1) -> int:
        """Time limit: what the operations and files take at stated rates, with a margin.

        Args:
            compute: The config's section.
            threads: Of the job, on a CPU.
        """
        rate = stated_rate(compute) * 1e12
        rate *= 1 if compute["device"].startswith("cuda") else threads
        seconds = (
            START_SECONDS + TIME_MARGIN * self.operations / rate + (self.read + self.disk + self.kept) / BYTES_A_SECOND
        )
        return ceil(seconds / 60 / 5) * 5

    @property
    def mem_mb(self) -> int:
        """Memory to ask for in the first attempt."""
        return _rounded(MEMORY_MARGIN * sum(self.memory.values()) / MB)

    @property
    def gpu_mb(self) -> int:
        """Memory that it wants of the GPU."""
        return _rounded(MEMORY_MARGIN * sum(self.gpu_memory.values()) / MB)

    @property
    def disk_mb(self) -> int:
        """Disk to ask for."""
        return max(1, ceil((self.disk + self.kept) / MB))


def products(compute: Mapping[str, Any]) -> str:
    """The type that matrices are kept and multiplied in."""
    return str(compute.get("weights", compute["dtype"]))


def stated_rate(compute: Mapping[str, Any]) -> float:
    """The rate of `RATES` for a config's section ``compute``, in TFLOP/s."""
    return RATES["cuda" if compute["device"].startswith("cuda") else "cpu", products(compute)]


def _rounded(mb: Amount) -> int:
    """Up to two digits or so: to 10 MB below one GB, to 100 MB above."""
    step = 10 if mb < 1000 else 100
    return ceil(mb / step) * step


IMPORTS = {
    "model": 500 * MB,
    "tokenizer": 440 * MB,
    "snapshot": 430 * MB,
    "page": 400 * MB,
    "figure": 275 * MB,
    "table": 170 * MB,
    "config": 38 * MB,
    "nothing": 30 * MB,
}
"""Memory of a process that has imported what a kind of job uses and does nothing yet, measured with torch for CPUs."""
TOKENIZER_ENTRY, TEXT = 1000, 6
"""Bytes of memory for each token that a tokenizer knows, and for each byte of text that becomes prompts."""
CUDA = 1500 * MB
"""What torch for GPUs and its context take beside that."""
TOP_SHARE = 0.6
"""Of the operations of all tokens, those of top tokens alone (docs/performance.md)."""
LISTED, WAITING, DRAWN, COUNTED = 10_000, 32, 3 * 256, 8 * 2048
"""Tokens of a head that tables list (`selfrepair.tables.sample`), prompts that wait to be added to sums, and whose draws are
held (`selfrepair.tables.statistics`), and bytes a head of counts of its values (`selfrepair.measure.largest`)."""
EXPLORER_PAIRS, EXPLORER_PAGE = 1_500_000, 15 * MB
"""(head, token) pairs that are read for the explorer's page (`selfrepair.explorer.payload`), and the page's size, at most."""
SHARDS_READ = {
    "find_thresholds": (4, 1),
    "average_activations": (1, 0),
    "choose_heads": (1, 1),
    "tabulate_checks": (10, 0),
    "tabulate_heads": (1, 8),
    "tabulate_token_noise": (1, 1),
    "tabulate_layernorm_scale": (1, 1),
    "tabulate_ablation_type": (1, 1),
    "tabulate_layernorm_claim": (1, 8),
    "tabulate_frozen_layernorm": (2, 1),
    "tabulate_neurons": (1, 0),
    "tabulate_reinforcement": (1, 1),
    "tabulate_repair": (2, 3),
    "tabulate_moved_residual": (2, 1),
    "tabulate_layer_ablations": (1, 1),
    "tabulate_selection_control": (2, 4),
    "tabulate_donor_noise": (1, 1),
    "write_explorer": (3, 9),
}
"""Rules that read all shards: how often each opens a shard, and quantities of every head and token that it reads, at most."""
OPENING = 5 * MB
"""What opening a file counts as, in bytes that are read: a tenth of a second."""
AROUND_MB = 500
"""What Snakemake takes around a job on a cluster, where a process of it runs the batch script and another the job's step."""
UNKNOWN_MB, UNKNOWN_MINUTES = 3000, 240
"""Asked for where nothing says how large the model is: it is shown so in a dry run, before there is a snapshot."""


def share_of_cores(mem_mb: int, machine_mb: int, cores: int) -> int:
    """Threads of a job: as few as keep jobs that run at a time within memory.

    One thread a job is fastest where as many jobs fit as there are cores (docs/performance.md).
    """
    at_once = max(1, machine_mb // mem_mb)
    return ceil(cores / at_once)


def model_shape(settings: Mapping[str, Any], snapshot: Path) -> Shape | None:
    """How large a model of the config is: by its snapshot, by the folder it is taken from, or by ``shape``; None if none says.

    Args:
        settings: The model's entry under ``models``.
        snapshot: Manifest of its snapshot, which may not be there, or be of another source.
    """
    sources = sources_of(settings)
    found = shape_of_folder(sources[0].path) if sources[0].scheme == "path" else None
    if found is None and json_or_nothing(snapshot).get("source") == joined_name(sources):
        found = shape_of_folder(snapshot.parent)
    if found is None and "shape" in settings:
        found = shape_of_settings(settings["shape"])
    return found


def costs_of(settings: Mapping[str, Any], snapshot: Path, config: Mapping[str, Any]) -> "Costs | None":
    """What the jobs of a model need; None where nothing says how large it is.

    Args:
        settings: The model's entry under ``models``.
        snapshot: Manifest of its snapshot.
        config: The merged config, checked.
    """
    shape = model_shape(settings, snapshot)
    dequantised = any(source.scheme == "package" for source in sources_of(settings))
    return None if shape is None else Costs(shape, config, dequantised)


class Costs:
    """What the jobs of a model on a corpus need.

    Args:
        shape: The model's sizes.
        config: The merged config, checked.
        dequantised: Its snapshot is made of a package's file, whose weights are dequantised.
    """

    def __init__(self, shape: Shape, config: Mapping[str, Any], dequantised: bool = False) -> None:
        self.shape, self.config, self.dequantised = shape, config, dequantised
        tokens, compute = config["tokens"], config["compute"]
        self.number = NUMBER[compute["dtype"]]
        self.length, self.prompts, self.in_shard = (
            tokens[name] for name in ("prompt_length", "prompts", "prompts_per_shard")
        )
        self.predicting = self.length - 1
        self.gpu = compute["device"].startswith("cuda")
        self.keep = config["cache"]["keep"]
        self.at_once = ACCELERATOR_BATCH_TOKENS if self.gpu else BATCH_TOKENS
        self.batch = min(self.in_shard, max(1, self.at_once // self.length)) * self.length
        self.of_weight = NUMBER[products(compute)]
        self.weights = shape.parameters * self.of_weight

    @property
    def shards(self) -> int:
        """Shards of the run."""
        return self.prompts // self.in_shard

    def heads(self, kind: str) -> int:
        """How many heads a kind of ablation ablates."""
        heads = self.config["ablations"][kind]["heads"]
        if heads == "all":
            return self.shape.layers * self.shape.heads
        return self.chosen if heads == "chosen" else len(heads)

    def layers_of(self, kind: str) -> int:
        """Of how many layers a kind of ablation ablates heads, at most."""
        heads = self.config["ablations"][kind]["heads"]
        named = self.heads(kind) if isinstance(heads, str) else len({layer for layer, _ in heads})
        return min(named, self.shape.layers)

    @property
    def chosen(self) -> int:
        """How many heads are looked at one by one."""
        return len(self.config["analyses"]["heads"] or range(CHOSEN))

    @property
    def noise_donors(self) -> int:
        """Donors that the chosen heads are ablated with, one at a time."""
        return min(self.config["analyses"]["noise_donors"], self.in_shard - 1)

    @property
    def top_tokens(self) -> Amount:
        """Top tokens of the chosen heads that lie in a shard, on average."""
        return self.config["statistics"]["top_fraction"] * self.in_shard * self.predicting * self.chosen

    @property
    def reinforced(self) -> int:
        """Changed positions for each top token, when heads read their own output."""
        return 3 * len(self.config["analyses"]["reinforcement_scales"])

    # Operations.

    def layer_operations(self, length: int, parameters: int | None = None) -> int:
        """Operations of one layer on a prompt of ``length`` tokens, as `selfrepair.model.flops.layer_flops` counts them."""
        maps = self.shape.layer_parameters if parameters is None else parameters
        return 2 * length * maps + 4 * length * length * self.shape.width

    def head_operations(self, layer: int) -> int:
        """Operations of ablating a head of a layer on a prompt, as `selfrepair.model.flops.head_flops` counts them."""
        shape, length = self.shape, self.predicting
        own = 0 if shape.parallel else 2 * length * shape.mlp_parameters
        later = (shape.layers - layer - 1) * (self.layer_operations(length) + 2 * length * shape.heads)
        return 2 * length * shape.d_head * shape.d_model + own + later

    def sweep_operations(self, kind: str, prompts: int) -> Amount:
        """Operations of one kind of ablation on some prompts; less than that where top tokens alone are computed."""
        heads = self.config["ablations"][kind]["heads"]
        if heads == "all":
            each = self.shape.heads * sum(map(self.head_operations, range(self.shape.layers)))
        elif heads == "chosen":
            each = self.of_chosen
        else:
            # A layer that the model lacks is refused by its job.
            each = sum(self.head_operations(min(layer, self.shape.layers - 1)) for layer, _ in heads)
        share = TOP_SHARE if self.config["ablations"][kind].get("tokens") == "top" else 1
        return share * prompts * each

    @property
    def of_chosen(self) -> int:
        """Operations of ablating the chosen heads on a prompt; where none are named, of heads of the first layer at most."""
        named = self.config["analyses"]["heads"]
        layers = [min(layer, self.shape.layers - 1) for layer, _ in named] if named else [0] * CHOSEN
        return sum(map(self.head_operations, layers))

    @property
    def of_clean(self) -> int:
        """Operations of the clean run of a prompt, with every head's direct effect."""
        shape = self.shape
        return shape.layers * (self.layer_operations(self.length) + self.of_directions)

    @property
    def of_directions(self) -> int:
        """Operations of projecting the correct directions of a prompt through the heads of a layer."""
        return 2 * self.predicting * self.shape.width * self.shape.d_model

    # Bytes.

    @property
    def activations(self) -> Amount:
        """Bytes of a shard's activations file."""
        shape = self.shape
        effects = shape.layers * (shape.heads + 1) + 2
        sums = 8 * shape.layers * shape.width
        large = self._large(shape.layers, shape.layers) if self.keep else 0
        return large + sums + self.in_shard * self.number * self.predicting * effects

    def _large(self, residuals: int, z: int) -> Amount:
        """Bytes of a shard's residuals and ``z`` of so many layers."""
        return self.in_shard * self.length * self.number * (residuals * self.shape.d_model + z * self.shape.width)

    def ablations(self, kind: str) -> Amount:
        """Bytes of an ablations file of a shard."""
        return self.heads(kind) * self.in_shard * (self.number * PER_TOKEN * self.predicting + self.repairs)

    @property
    def repairs(self) -> Amount:
        """Bytes of a head's repair by every component of the model, on a prompt."""
        return self.number * self.shape.layers * (self.shape.heads + 1)

    @property
    def neurons(self) -> Amount:
        """Bytes of a neurons file of a shard."""
        kept = 3 * self.config["analyses"]["top_neurons"] + 150
        return self.top_tokens * self.number * (kept + 10)

    def _through_a_layer(self, heads: int = 1) -> Amount:
        """Bytes of what is alive at once while a batch goes through a layer.

        Args:
            heads: Of the layer that are ablated, a run each: as many go through it together as there is room for.
        """
        shape, tokens = self.shape, max(self.batch, min(heads * self.batch, self.at_once))
        return tokens * (self.number * (6 * shape.d_model + 4 * shape.width) + self.of_weight * 4 * shape.d_mlp)

    @property
    def _clean_run(self) -> Amount:
        """Bytes of a batch's clean run."""
        shape = self.shape
        return self.number * shape.layers * self.batch * (shape.d_model + shape.width) + self._through_a_layer()

    @property
    def _of_batch(self) -> Amount:
        """Bytes of what a batch's ablated runs need beside a layer: directions, projected and not, and clean effects."""
        shape = self.shape
        of_layers = shape.layers * (shape.width + 2 * shape.heads)
        return self.number * self.batch * (of_layers + 6 * shape.d_model)

    @property
    def _proof(self) -> Amount:
        """Bytes of plain runs of a prompt, clean and ablated, and of some logits."""
        shape = self.shape
        runs = 2 * shape.layers * self.length * (2 * shape.d_model + shape.width)
        # Plain runs of a bfloat16 model compute in float32: one weight at a time.
        wide = self.number * shape.largest if self.of_weight < self.number else 0
        return self.number * (runs + 2 * min(256, self.predicting) * shape.vocabulary) + wide

    @property
    def _of_donors(self) -> Amount:
        """Bytes of a layer's ``z`` of a shard, from which donors are taken."""
        return self.number * self.in_shard * self.length * self.shape.width

    # Jobs.

    def of(self, rule: str, kind: str | None = None, text: int = 0) -> Need:
        """What a job of a rule needs.

        Args:
            rule: Its name; a figure's is ``draw_figure``.
            kind: The job's kind of ablation, where it has one.
            text: Bytes of the corpus, for the rule that tokenizes it.
        """
        number, shape, in_shard = self.number, self.shape, self.in_shard
        per_head = number * in_shard * self.predicting
        replay = self._of_batch + self._through_a_layer(shape.heads)
        opened = {"read": self.activations + shape.stored_bytes, "tokens": in_shard * self.length}
        of_chosen = min(self.chosen, shape.layers)
        match rule:
            case "cache_activations":
                return self._model_job(
                    batch=self._clean_run,
                    disk=self.activations,
                    operations=in_shard * self.of_clean,
                    read=shape.stored_bytes,
                    tokens=in_shard * self.length,
                )
            case "ablate_heads":
                assert kind is not None
                return self._model_job(
                    batch=replay,
                    host=self._of_donors,
                    results=2 * self.ablations(kind),
                    disk=self.ablations(kind),
                    kept=self.ablations(kind),
                    operations=self.sweep_operations(kind, in_shard),
                    starts=self.layers_of(kind),
                    **opened,
                )
            case "freeze_layernorm":
                return self._model_job(
                    batch=replay + number * 256 * shape.vocabulary,
                    host=self._of_donors,
                    results=4 * self.chosen * per_head,
                    disk=2 * self.chosen * per_head,
                    operations=in_shard * self.of_chosen,
                    starts=of_chosen,
                    **opened,
                )
            case "measure_neurons":
                tokens = min(self.top_tokens, self.batch)
                return self._model_job(
                    batch=replay + number * (self.batch + 10 * tokens) * shape.d_mlp,
                    host=self._of_donors,
                    results=3 * self.neurons,
                    disk=self.neurons,
                    operations=in_shard * (self.of_chosen + self.layer_operations(self.length)),
                    starts=shape.layers,
                    **opened,
                )
            case "measure_donor_noise":
                donors = self.noise_donors
                return self._model_job(
                    batch=replay,
                    host=self._of_donors,
                    results=3 * donors * self.chosen * PER_TOKEN * per_head,
                    disk=donors * self.chosen * PER_TOKEN * per_head,
                    operations=in_shard * donors * self.of_chosen,
                    starts=of_chosen,
                    **opened,
                )
            case "project_other_donor":
                return self._model_job(
                    batch=number * self.batch * (2 * shape.d_model + 3 * shape.width),
                    host=self._of_donors,
                    disk=shape.layers * shape.heads * per_head,
                    operations=in_shard * shape.layers * self.of_directions,
                    starts=shape.layers,
                    **opened,
                )
            case "reinforce_heads":
                changed = self.top_tokens / self.chosen * shape.layers * shape.heads * self.reinforced
                sums = shape.layers * shape.heads * in_shard * (3 + self.reinforced) * 8
                attention = shape.layers * self.layer_operations(self.length, shape.attention_parameters)
                return self._model_job(
                    batch=number * (1024 + self.length) * (6 * shape.d_model + 6 * shape.width)
                    + number * shape.heads * (1024 + self.length) ** 2,
                    results=2 * sums,
                    disk=sums,
                    operations=in_shard * attention + changed * 2 * shape.attention_parameters,
                    starts=shape.layers,
                    **opened,
                )
            case "move_residual":
                return self._model_job(
                    batch=number * self.batch * (6 * shape.d_model + 4 * shape.width),
                    disk=self.chosen * in_shard * shape.heads * 8,
                    operations=in_shard
                    * self.chosen
                    * (self.layer_operations(self.length, shape.attention_parameters) + self.of_directions),
                    starts=of_chosen,
                    **opened,
                )
            case "ablate_layers":
                later = shape.layers * (shape.layers + 1) / 2
                return self._model_job(
                    batch=self._of_batch + self._through_a_layer() + 6 * number * self.batch * shape.d_model,
                    host=self._of_donors,
                    disk=2 * PER_TOKEN * shape.layers * per_head,
                    operations=in_shard * (2 * later + 3 * shape.layers) * self.layer_operations(self.length),
                    starts=shape.layers,
                    **opened,
                )
        return self._other_job(rule, kind, text)

    def _model_job(
        self,
        *,
        batch: Amount,
        disk: Amount,
        operations: Amount,
        read: Amount,
        tokens: int,
        kept: Amount = 0,
        host: Amount = 0,
        results: Amount = 0,
        starts: int = 0,
    ) -> Need:
        """A job that runs the model: on a GPU, batches are there and the weights pass through memory.

        One that ``starts`` from some layers of the clean run makes it again where it is not kept.
        """
        again = {}
        if starts and not self.keep:
            batch, operations = max(batch, self._clean_run), operations + self.in_shard * self.of_clean
            again = {"activations of a shard": self._large(min(2 * starts, self.shape.layers), starts)}
        small = batch + self._proof
        memory = {
            "Python and libraries": IMPORTS["model"] + (CUDA if self.gpu else 0),
            "weights": self.weights,
            **self._larger(
                {"loading the weights": self._loading},
                {"a batch of prompts": host + (0 if self.gpu else small), "results of a shard": results, **again},
            ),
        }
        gpu = {}
        if self.gpu:
            # Of layers that are offloaded one weight is there, beside embedding and unembedding.
            there = 3 * self.of_weight * self.shape.largest if self.config["compute"].get("offload") else self.weights
            gpu = {"weights": min(there, self.weights), "a batch of prompts": host + small}
        return Need(memory, gpu, disk=disk, kept=kept, read=read, operations=operations, tokens=tokens)

    @property
    def _loading(self) -> Amount:
        """Bytes held beside the weights while these are read: the files, or a part where these are used as they are."""
        converted = self.shape.stored_bytes != self.weights
        return self.shape.stored_bytes if converted else self.of_weight * max(self.shape.largest, 2**24)

    @staticmethod
    def _larger(one: dict[str, Amount], other: dict[str, Amount]) -> dict[str, Amount]:
        """Of what is held one after the other, the larger."""
        return max(one, other, key=lambda parts: sum(parts.values()))

    def _other_job(self, rule: str, kind: str | None, text: int) -> Need:
        """A job that runs no model."""
        shape, config = self.shape, self.config
        held, read, imports, disk = 0.0, 0.0, "table", float(MB)
        match rule:
            case "snapshot_model":
                imports, read = "snapshot", 2 * shape.stored_bytes
                disk = shape.stored_bytes
                if self.dequantised:
                    # All weights, and copies of the largest on their way.
                    held = NUMBER["float32"] * (shape.parameters + 3 * shape.largest)
            case "check_model":
                imports = "config"
            case "check_published":
                imports = "tokenizer" if any("published" in of for of in config["models"].values()) else "nothing"
            case "tokenize_corpus":
                imports, held, read = "tokenizer", TOKENIZER_ENTRY * shape.vocabulary + TEXT * text, text
            case "draw_figure" | "write_findings":
                imports, held = "figure", 2 * self._listed()
            case "tabulate_heads":
                imports = "tokenizer"
            case "write_explorer":
                imports, disk = "page", EXPLORER_PAGE
            case "find_thresholds":
                # A bit for each head and token, compressed.
                disk += shape.layers * shape.heads * self.prompts * self.predicting / 8
        if rule in SHARDS_READ:
            held, read = self._condensed(rule, kind), self._read(rule, kind)
        # A copy of five quantities of every token, and a byte, which is read three times.
        copied = rule == "tabulate_selection_control"
        heads = self.heads(kind) if kind else shape.layers * shape.heads
        kept = copied * heads * self.prompts * self.predicting * (5 * self.number + 1)
        memory = {"Python and libraries": IMPORTS[imports], "a shard, and sums over all": held}
        return Need(memory, disk=disk, kept=kept, read=read + 3 * kept)

    def _condensed(self, rule: str, kind: str | None) -> Amount:
        """Bytes that a job of all shards holds: a shard's values, and sums over prompts in every resample."""
        shape, number = self.shape, self.number
        every = shape.layers * shape.heads
        heads = self.heads(kind) if kind else every
        tokens = self.in_shard * self.predicting
        # Of one quantity: a shard's tokens, a head's and all heads' sums, and those of the prompts that wait to be added.
        of_tokens = heads * tokens * number
        resampled = 8 * (1 + self.config["statistics"]["n_bootstrap"])
        of_heads = heads * (resampled + 8 * WAITING)
        drawn = resampled / 8 * min(self.prompts, DRAWN)
        match rule:
            case "find_thresholds":
                return 3 * every * COUNTED + every * tokens * (4 * number + 16)
            case "average_activations":
                return 6 * 8 * shape.layers * shape.width
            case "choose_heads":
                return of_tokens + heads * tokens * 10
            case "tabulate_heads":
                return drawn + 22 * of_tokens + 65 * of_heads
            case "tabulate_layernorm_claim":
                return drawn + 30 * of_tokens + 14 * of_heads
            case "tabulate_layernorm_scale":
                return drawn + 12 * of_tokens
            case "tabulate_selection_control":
                return drawn + 40 * of_tokens + 12 * heads * COUNTED + 75 * of_heads
            case "tabulate_repair":
                repairs = heads * self.in_shard * self.repairs
                return (
                    drawn
                    + 4 * repairs
                    + 1.5 * shape.layers * of_heads
                    + 4 * self.chosen * shape.layers * of_heads / heads
                )
            case "tabulate_moved_residual":
                return drawn + self.chosen * self.in_shard * self.repairs + 8 * self.chosen * shape.heads * resampled
            case "tabulate_layer_ablations":
                return drawn + 2 * shape.layers * (30 * 8 * tokens + 60 * resampled)
            case "tabulate_reinforcement":
                return drawn + every * (self.reinforced + 25) * (resampled + 8 * WAITING)
            case "tabulate_neurons":
                kept = 8 * self.config["analyses"]["top_neurons"] + 300
                return drawn + 3 * self.neurons + self.chosen * 2 * kept * resampled + self._listed()
            case "tabulate_token_noise":
                return drawn + 30 * self.chosen * tokens * number + 4 * self._listed()
            case "tabulate_ablation_type":
                return drawn + 30 * tokens * number + 4 * self._listed() / self.chosen
            case "tabulate_donor_noise":
                top = self.config["statistics"]["top_fraction"]
                return drawn + 30 * self.chosen * tokens * number + 4 * self._listed(top * self.noise_donors)
            case "write_explorer":
                repairs = heads * self.in_shard * self.repairs * 8 / number
                pairs = min(EXPLORER_PAIRS, heads * self.prompts * self.predicting)
                return drawn + 20 * of_tokens + 3 * repairs + 2 * 12 * of_heads + 60 * pairs + 5 * EXPLORER_PAGE
            case "tabulate_frozen_layernorm":
                return drawn + 30 * self.chosen * tokens * number
        return 0

    def _listed(self, share: float = 1) -> Amount:
        """Bytes of a table that lists tokens of the chosen heads, ``share`` rows each or a sample, as a job holds it."""
        return 150 * self.chosen * min(LISTED, share * self.prompts * self.predicting)

    def _read(self, rule: str, kind: str | None) -> Amount:
        """Bytes that a job of all shards reads, opening a file counted as so many."""
        shape, number = self.shape, self.number
        passes, quantities = SHARDS_READ[rule]
        heads = self.heads(kind) if kind else shape.layers * shape.heads
        of_tokens = heads * self.in_shard * self.predicting * number
        repairs = heads * self.in_shard * self.repairs if rule in ("tabulate_repair", "write_explorer") else 0
        return self.shards * passes * (OPENING + quantities * of_tokens + repairs)
