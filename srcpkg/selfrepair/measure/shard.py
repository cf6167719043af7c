"""A shard of prompts, opened once: what every measurement of one starts from.

A measurement is a function of an open shard that writes one file:

    with open_shard(inputs, prompts=(0, 8), compute=compute) as shard:
        for batch in shard.batches("what is done", "batch"):
            ...  # batch.tokens, batch.clean, batch.replacement("resample")

Where it replays the model, it repeats some of its ablations by plain runs (`Shard.repeats`, or `Shard.proof`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.engine.clean import CleanRun, prompt_chunks
from selfrepair.engine.heads import Heads
from selfrepair.engine.proof import PlainReplacements, Proof, Repeated, layers_run, repeat_heads
from selfrepair.engine.replacements import Replacement, constant_replacement, plain_replacements
from selfrepair.measure.activations import CachedActivations, open_activations
from selfrepair.measure.mean_activations import read_mean_activations
from selfrepair.measure.thresholds import open_top_tokens
from selfrepair.measure.tokens import read_shard
from selfrepair.model.loading import load_model
from selfrepair.model.model import Model
from selfrepair.workflow.progress import Progress


@dataclass(frozen=True)
class Shard:
    """An open shard. Made by `open_shard`.

    Attributes:
        model: The model.
        prompts: The shard's prompts, as rows of the data set.
        tokens: Their token ids [prompt, pos].
        donors: Each prompt's donors, as rows of the shard [prompt, donor].
        cached: Their clean run.
        thresholds: File of each head's top tokens, for measurements that take them.
        mean_z: ``z`` averaged over the data set [layer, head, d_head], for mean ablation.
    """

    model: Model
    prompts: slice
    tokens: Int[Tensor, "prompt pos"]
    donors: Int[np.ndarray, "prompt donor"]
    cached: CachedActivations
    thresholds: Path | None
    mean_z: Float[Tensor, "layer head d_head"] | None

    @property
    def dtype(self) -> np.dtype:
        """Of what is written: the model's."""
        return torch.zeros(0, dtype=self.model.dtype).numpy().dtype

    @property
    def all_heads(self) -> list[tuple[int, int]]:
        """(layer, head) pairs of every head."""
        return [(layer, head) for layer in range(self.model.n_layers) for head in range(self.model.n_heads)]

    def top_tokens(self, heads: Heads) -> Bool[np.ndarray, "head prompt predicted"]:
        """Which tokens are top tokens of each head.

        Raises:
            ValueError: The shard was opened without thresholds, or they lack heads or prompts of it.
        """
        if self.thresholds is None:
            raise ValueError("the shard was opened without thresholds: add them to the inputs of its rule")
        with open_top_tokens(self.thresholds) as top:
            return top.of(heads, self.prompts)

    def batches(self, what: str, unit: str = "batch", units: int = 1) -> Iterator["PromptBatch"]:
        """The shard's prompts, as many at a time as memory is kept for; progress is shown.

        Args:
            what: What is done, for progress.
            unit: What is counted. Batches are counted here; of anything else, each is told to ``batch.progress``.
            units: How many of them a batch is.
        """
        chunks = prompt_chunks(self.model, *self.tokens.shape)
        title = f"{what} of prompts {self.prompts.start} to {self.prompts.stop - 1}"
        with Progress(len(chunks) * units, title, unit) as progress:
            for rows in chunks:
                yield PromptBatch(self, rows, self.donors[rows], progress)
                if unit == "batch":
                    progress.advance()

    def proof(self, what: str) -> Proof:
        """Counts what of a measurement is repeated by plain runs; seeded by the shard.

        Args:
            what: What is measured, for errors.
        """
        return Proof(self.model, what, seed=self.prompts.start)

    def repeats(
        self,
        what: str,
        kind: str,
        heads: Heads,
        measured: Bool[np.ndarray, "head prompt"],
        watch: Sequence[nn.Module] = (),
    ) -> "Repeats":
        """Draw ablations of heads that are repeated by plain runs.

        Args:
            what: What is measured, for errors.
            kind: "resample", "mean" or "zero".
            heads: The (layer, head) pairs that are ablated.
            measured: Whether anything is measured of a head on a prompt.
            watch: Modules whose inputs are kept in plain runs.
        """
        proof = self.proof(what)
        return Repeats(proof, kind, heads, proof.draw(measured, layers_run(self.model, heads)), watch)


@dataclass(frozen=True)
class PromptBatch:
    """Some prompts of a shard, which are run at once. Made by `Shard.batches`.

    Attributes:
        shard: Whose prompts they are.
        rows: Which, as rows of the shard.
        donors: Their donors, as rows of the shard [prompt, donor].
        progress: To be told of finished units, where they are not batches.
    """

    shard: Shard
    rows: slice
    donors: Int[np.ndarray, "prompt donor"]
    progress: Progress

    @property
    def tokens(self) -> Int[Tensor, "prompt pos"]:
        """Their token ids."""
        return self.shard.tokens[self.rows]

    @property
    def numbers(self) -> Int[np.ndarray, " prompt"]:
        """Their numbers in the data set."""
        return self.shard.prompts.start + np.arange(len(self.shard.tokens))[self.rows]

    @cached_property
    def clean(self) -> CleanRun:
        """Their clean run, whose residuals and ``z`` are read when they are asked for."""
        return self.shard.cached.clean_run(self.rows)

    def replacement(self, kind: str) -> Replacement:
        """What takes the place of ``z`` of a layer.

        Args:
            kind: "resample" (their donors' own, averaged), "mean" or "zero".
        """
        if kind == "resample":
            return partial(self.shard.cached.donor_z, donors=self.donors)
        return constant_replacement(self.shard.model, kind, self.tokens.shape, self.shard.mean_z)

    @property
    def donor_tokens(self) -> Int[Tensor, "prompt donor pos"]:
        """Token ids of their donors."""
        return self.shard.tokens[torch.from_numpy(self.donors).long()]

    def plain_replacements(self, kind: str) -> PlainReplacements:
        """The same as `replacement` in plain runs, from token ids alone."""
        donors = self.donor_tokens.numpy() if kind == "resample" else None
        return plain_replacements(self.shard.model, kind, donors, self.shard.mean_z)


@dataclass(frozen=True)
class Repeats:
    """Ablations of heads that are repeated by plain runs. Made by `Shard.repeats`.

    Attributes:
        proof: Where they are counted.
        kind: Of ablation.
        heads: The (layer, head) pairs that are ablated.
        drawn: Prompts of the shard, each with rows of ``heads``.
        watch: Modules whose inputs are kept.
    """

    proof: Proof
    kind: str
    heads: Heads
    drawn: list[tuple[int, list[int]]]
    watch: Sequence[nn.Module]

    def of(self, batch: PromptBatch) -> Iterator[Repeated]:
        """Repeat those of a batch of prompts."""
        within, plain = self.proof.within(self.drawn, batch.rows), batch.plain_replacements(self.kind)
        return repeat_heads(self.proof, within, self.heads, batch.tokens, plain, self.watch)


@contextmanager
def open_shard(
    inputs: Mapping[str, Any],
    *,
    prompts: tuple[int, int],
    compute: Mapping[str, Any],
    layers: Iterable[int] | None = None,
) -> Iterator[Shard]:
    """Open a shard for a measurement: load the model, read the prompts, open their clean run.

    Where the file of that is without residuals, it is made again.

    Args:
        inputs: Paths by the names that rules give them: model (manifest of the snapshot), tokens, activations; thresholds where
            top tokens are measured, mean_activations for mean ablation, if given and not empty. Others are left alone.
        prompts: First prompt of the shard, and the one after its last.
        compute: device, dtype, center_unembed.
        layers: Layers that the measurement starts from, for a clean run that is made again; None means all.

    Raises:
        ValueError: A file is missing, damaged, or of another model or shard.
    """
    model = load_model(Path(inputs["model"]).parent, **compute)
    rows = slice(*prompts)
    shard = read_shard(Path(inputs["tokens"]), rows)
    tokens = torch.from_numpy(shard.tokens).long()
    thresholds, mean_activations = (inputs.get(name) for name in ("thresholds", "mean_activations"))
    mean_z = None
    if mean_activations:
        mean_z = torch.from_numpy(read_mean_activations(Path(mean_activations))).to(model.device)
    with open_activations(Path(inputs["activations"]), model, tokens, layers) as cached:
        yield Shard(
            model=model,
            prompts=rows,
            tokens=tokens,
            donors=shard.donors,
            cached=cached,
            thresholds=Path(thresholds) if thresholds else None,
            mean_z=mean_z,
        )
