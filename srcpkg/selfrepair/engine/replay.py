"""Suffix replay: the ablated run of many heads at once, from the clean residual of their layer.

An ablated head changes nothing before its own write, so its ablated run starts from the clean ``resid_pre`` of its layer, adds
what the head would write to the clean output of that layer's attention, and calls the model's own decoder layers from there on.
The last position of a prompt predicts nothing and no other position reads it, so ablated runs leave it out.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.engine.batches import Batch, cut_batches, whole_batches
from selfrepair.engine.clean import CleanRun, Directions, by_head, head_direct_effects, project, written
from selfrepair.model.allocator import block_of_its_own
from selfrepair.model.calls import forward_is, gives, hooked
from selfrepair.model.model import Model


@dataclass(frozen=True)
class Ablated:
    """What a batch of ablations gives, in logits but for the scale; "head" and "prompt" are the batch's grid.

    Attributes:
        direct_effect, ablated_direct_effect, logit_change, self_repair_from_heads, self_repair_from_mlps,
            self_repair_from_layernorm: [head, prompt, pos-1] (docs/definitions.md, Effects).
        ablated_scale: Final norm's scale in the ablated run [head, prompt, pos-1].
        repair_by_head: [head, prompt, layer, head], summed over the selected tokens of the ablated head; logits.
        repair_by_mlp: [head, prompt, layer], likewise.
        summed: Sizes of the terms that cancel in the identity [head, prompt, pos-1], logits: all direct effects and what they
            change by, the token's constant, and the longest residual of the run times |d| / s. Rounding errors grow with these.
    """

    direct_effect: Float[Tensor, "row prompt predicted"]
    ablated_direct_effect: Float[Tensor, "row prompt predicted"]
    logit_change: Float[Tensor, "row prompt predicted"]
    self_repair_from_heads: Float[Tensor, "row prompt predicted"]
    self_repair_from_mlps: Float[Tensor, "row prompt predicted"]
    self_repair_from_layernorm: Float[Tensor, "row prompt predicted"]
    ablated_scale: Float[Tensor, "row prompt predicted"]
    repair_by_head: Float[Tensor, "row prompt layer head"]
    repair_by_mlp: Float[Tensor, "row prompt layer"]
    summed: Float[Tensor, "row prompt predicted"]


LAYER_COMPONENTS = ("attention", "mlp")
"""What a layer has that can be ablated as a whole."""


class SuffixReplay:
    """Ablated runs of some prompts, from their clean run.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos] of the prompts.
        clean: Their clean run.
    """

    def __init__(self, model: Model, tokens: Int[Tensor, "prompt pos"], clean: CleanRun) -> None:
        self.model = model
        self.clean = clean
        self.n_prompts, self.length = tokens.shape[0], tokens.shape[1] - 1
        with torch.inference_mode():
            self.directions = Directions.of(model, tokens)
            self.scaled = self.directions.d / clean.scale[..., None]
            self.d_length = self.scaled.norm(dim=-1)
            self.effect_sizes = clean.head_direct_effect.abs().sum((0, -1)) + clean.mlp_direct_effect.abs().sum(0)
            # Correct logits are kept with the token's constant.
            self.effect_sizes += self.directions.constant.abs()
            shape = (model.n_layers, *self.scaled.shape[:2], model.n_heads, model.d_head)
            self.projected = block_of_its_own(shape, model.dtype, model.device)
            for layer in range(model.n_layers):
                self.projected[layer] = project(model, layer, self.scaled)

    def ablate(
        self,
        layer: int,
        heads: Sequence[int],
        replacement: Float[Tensor, "prompt pos head d_head"],
        selected: Bool[Tensor, "row prompt predicted"],
    ) -> Iterator[tuple[Batch, Ablated]]:
        """Ablate each of ``heads`` of a layer alone on every token, a batch of heads at a time.

        Args:
            layer: Their layer.
            heads: Head indices.
            replacement: What takes the place of the layer's ``z``; only the ablated head's slice is used.
            selected: Which tokens count in ``repair_by_*`` of each head [len(heads), prompt, pos-1].

        Yields:
            Which heads, as positions in ``heads``, and their results.
        """
        batches = whole_batches(heads, self.n_prompts, self.length, self.model.batch_tokens)
        yield from self._each(layer, batches, replacement, selected)

    def ablate_selected(
        self,
        layer: int,
        heads: Sequence[int],
        replacement: Float[Tensor, "prompt pos head d_head"],
        selected: Bool[Tensor, "row prompt predicted"],
    ) -> Iterator[tuple[Batch, Ablated]]:
        """Ablate each of ``heads`` alone where it has selected tokens, and no further than its last one in each prompt.

        Later positions do not reach earlier ones, and the last MLP mixes none, so what is computed at the selected tokens
        is what `ablate` computes there; other tokens' values mean nothing.

        Args:
            layer: Their layer.
            heads: Head indices.
            replacement: As for `ablate`.
            selected: The tokens wanted of each head [len(heads), prompt, pos-1].

        Yields:
            Which heads and prompts, and their results, of the positions up to the batch's last.
        """
        yield from self._each(layer, cut_batches(heads, selected, self.model.batch_tokens), replacement, selected)

    def ablated_residuals(
        self,
        layer: int,
        heads: Sequence[int],
        replacement: Float[Tensor, "prompt pos head d_head"],
        selected: Bool[Tensor, "row prompt predicted"],
    ) -> Iterator[tuple[Batch, Float[Tensor, "row prompt predicted d_model"]]]:
        """The final residual r' of the ablated runs of `ablate_selected`, for a look at what comes after it.

        Args:
            layer: Their layer.
            heads: Head indices.
            replacement: As for `ablate`.
            selected: The tokens wanted of each head [len(heads), prompt, pos-1].

        Yields:
            Which heads and prompts, and r' at the positions up to the batch's last; at tokens not wanted it means nothing.
        """
        with torch.inference_mode():
            start, replacement = self._start(layer), _predicting(replacement)
        for batch in cut_batches(heads, selected, self.model.batch_tokens):
            with torch.inference_mode():
                yield batch, self._run(start, batch, replacement, _Changes(self, batch, selected))

    def _each(
        self, layer: int, batches: Iterable[Batch], replacement: Tensor, selected: Tensor
    ) -> Iterator[tuple[Batch, Ablated]]:
        with torch.inference_mode():
            start, replacement = self._start(layer), _predicting(replacement)
        for batch in batches:
            with torch.inference_mode():
                yield batch, self._ablate_batch(start, batch, replacement, selected)

    def ablate_layer(self, layer: int, component: str, change: Float[Tensor, "prompt pos d_model"]) -> Ablated:
        """Let the whole attention or the whole MLP of a layer write something else, on every prompt.

        Args:
            layer: The layer.
            component: "attention" or "mlp".
            change: What it writes, less what it writes in the clean run.

        Returns:
            Results of one row, where "self_repair_from_*" is what later components and the final norm change by, and
            ``repair_by_*`` are summed over all tokens. The direct effect of an attention is that of all its heads.

        Raises:
            ValueError: Another component.
        """
        clean, change = self.clean, _predicting(change)
        if component not in LAYER_COMPONENTS:
            raise ValueError(f"component is {component!r}; wanted one of {', '.join(LAYER_COMPONENTS)}")
        with torch.inference_mode():
            if component == "attention":
                start, effect = self._start(layer), clean.head_direct_effect[layer].sum(-1)
            else:
                start = _Start(layer, _predicting(clean.z[layer]), resid=self._after(layer), attention=None)
                effect = clean.mlp_direct_effect[layer]
            batch = Batch(rows=[0], heads=[0])
            changes = _Changes(self, batch, torch.ones(1, self.n_prompts, self.length, dtype=torch.bool))
            return self._measure(
                batch,
                self._run_changed(start, batch, change[None], changes),
                changes,
                direct_effect=effect[None],
                ablated_direct_effect=(effect + (self.model.written(change) * self.scaled).sum(-1))[None],
            )

    def _start(self, layer: int) -> "_Start":
        """What the ablated runs of all heads of a layer share, which is all but the head's own write."""
        z = _predicting(self.clean.z[layer])
        if not self.model.parallel:
            with self.model.running():
                attention = self.model.attention_out(layer)(z.flatten(-2)).to(self.model.dtype)
            return _Start(layer, z, resid=_predicting(self.clean.resid_pre[layer]), attention=attention)
        # Attention and MLP read the same residual, so that the layer's MLP repeats its clean output too.
        return _Start(layer, z, resid=self._after(layer), attention=None)

    def _after(self, layer: int) -> Float[Tensor, "prompt predicted d_model"]:
        """The clean residual that leaves a layer."""
        if layer + 1 < self.model.n_layers:
            return _predicting(self.clean.resid_pre[layer + 1])
        call = self.model.layer_calls(self.length + 1, cut=1)[layer]
        with self.model.running():
            return call.replay(self.model.layers[layer], _predicting(self.clean.resid_pre[layer]))

    def _ablate_batch(self, start: "_Start", batch: Batch, replacement: Tensor, selected: Tensor) -> Ablated:
        model, clean, layer = self.model, self.clean, start.layer
        z_ablated = batch.of_heads(replacement - model.value_constant[layer])
        changes = _Changes(self, batch, selected)
        return self._measure(
            batch,
            self._run(start, batch, replacement, changes),
            changes,
            direct_effect=batch.of_heads(clean.head_direct_effect[layer]),
            ablated_direct_effect=torch.linalg.vecdot(z_ablated, batch.of_heads(self.projected[layer])),
        )

    def _measure(
        self, batch: Batch, final: Tensor, changes: "_Changes", *, direct_effect: Tensor, ablated_direct_effect: Tensor
    ) -> Ablated:
        """What an ablated run gives, from its final residual [row, prompt, pos-1, d_model] and what was seen on the way."""
        scale = batch.of_prompts(self.clean.scale)
        ablated_scale = self.model.final_norm.scale(final)
        frozen_logit = (final * batch.of_prompts(self.scaled)).sum(-1)  # r' . d / s
        to_ablated = scale / ablated_scale
        clean_logit = batch.of_prompts(self.clean.correct_logit - self.directions.constant)
        return Ablated(
            direct_effect=direct_effect,
            ablated_direct_effect=ablated_direct_effect,
            logit_change=frozen_logit * to_ablated - clean_logit,
            self_repair_from_heads=changes.from_heads,
            self_repair_from_mlps=changes.from_mlps,
            self_repair_from_layernorm=frozen_logit * (to_ablated - 1),
            ablated_scale=ablated_scale,
            repair_by_head=changes.by_head,
            repair_by_mlp=changes.by_mlp,
            summed=batch.of_prompts(self.effect_sizes)
            + changes.sizes
            + changes.longest * batch.of_prompts(self.d_length),
        )

    def _run(
        self, start: "_Start", batch: Batch, replacement: Tensor, changes: "_Changes"
    ) -> Float[Tensor, "row prompt predicted d_model"]:
        """The final residual with each head ablated; ``changes`` sees every component on the way."""
        write = batch.write(batch.of_heads(replacement - start.z), self.model.W_O[start.layer])
        return self._run_changed(start, batch, write, changes)

    def _run_changed(
        self, start: "_Start", batch: Batch, change: Tensor, changes: "_Changes"
    ) -> Float[Tensor, "row prompt predicted d_model"]:
        """The final residual with ``change`` added where it starts; ``changes`` sees every component on the way."""
        model, layer = self.model, start.layer
        clean_resid = batch.of_prompts(start.resid)
        if start.attention is None:
            first, resid, attention = layer + 1, clean_resid + model.written(change), None
        else:
            first, resid = layer, clean_resid.expand_as(change)
            attention = batch.of_prompts(start.attention) + change
        resid = resid.flatten(0, 1)
        calls = model.layer_calls(self.length + 1, cut=batch.cut + 1)
        given = gives(model.attention(layer), None if attention is None else attention.flatten(0, 1))
        needed = None if batch.prompts is None else changes.selected
        last = _mlp_runs_on(model.mlp(model.n_layers - 1), needed)
        with hooked(lambda: changes.hooks(layer)), given, last, model.running():
            changes.meet(resid)
            for at in range(first, model.n_layers):
                resid = calls[at].replay(model.layers[at], resid)
                changes.meet(resid)
        return resid.unflatten(0, change.shape[:2])


def _predicting(values: Tensor) -> Tensor:
    """Per-position values [prompt, pos, ...] at the predicting positions, in one piece, as some models' maps want it."""
    return values[:, :-1].contiguous()


@dataclass(frozen=True)
class _Start:
    """Where ablated runs of a layer begin.

    Attributes:
        layer: The layer.
        z: Its clean ``z`` [prompt, pos-1, head, d_head].
        resid: Clean residual [prompt, pos-1, d_model] that enters the layer; that leaves it, where nothing in it changes.
        attention: Clean output of its attention [prompt, pos-1, d_model]; None where ``resid`` is what leaves the layer.
    """

    layer: int
    z: Tensor
    resid: Tensor
    attention: Tensor | None


class _Changes:
    """Collects what the direct effects of later components change by, while the later layers run."""

    def __init__(self, replay: SuffixReplay, batch: Batch, selected: Tensor) -> None:
        model = replay.model
        self.replay, self.batch = replay, batch
        self.d, self.scale = batch.of_prompts(model.written(replay.directions.d)), batch.of_prompts(replay.clean.scale)
        shape = batch.shape(replay.n_prompts)
        self.shape = (*shape, replay.length - batch.cut)
        self.selected = batch.of_selection(selected).to(model.device)
        self.weight = self.selected.to(model.dtype)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=model.dtype, device=model.device)

        self.from_heads, self.from_mlps = zeros(*self.shape), zeros(*self.shape)
        self.sizes, self.longest = zeros(*self.shape), zeros(*self.shape)
        self.by_head, self.by_mlp = zeros(*shape, model.n_layers, model.n_heads), zeros(*shape, model.n_layers)

    def hooks(self, layer: int) -> list[Any]:
        """Watch every component that can change when a head of ``layer`` is ablated."""
        model = self.replay.model
        later = range(layer + 1, model.n_layers)
        mlps = later if model.parallel else range(layer, model.n_layers)
        return [
            *(model.attention_out(at).register_forward_pre_hook(partial(self._see_heads, at)) for at in later),
            *(model.mlp(at).register_forward_hook(partial(self._see_mlp, at)) for at in mlps),
        ]

    def meet(self, resid: Tensor) -> None:
        """Keep the length of the longest residual that a token meets on its way, [row, prompt, pos-1]."""
        torch.maximum(self.longest, resid.norm(dim=-1).unflatten(0, self.shape[:2]), out=self.longest)

    def _see_heads(self, layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        replay, view = self.replay, self.batch.of_prompts
        with replay.model.measuring():
            z = by_head(replay.model, args[0]).unflatten(0, self.shape[:2]) - replay.model.value_constant[layer]
            effects = head_direct_effects(z, view(replay.projected[layer]))
            change = effects - view(replay.clean.head_direct_effect[layer])
            self.from_heads += change.sum(-1)
            self.sizes += change.abs().sum(-1)
            self.by_head[:, :, layer] = torch.einsum("rpth,rpt->rph", change, self.weight)

    def _see_mlp(self, layer: int, _: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
        write = written(out, self.shape)
        clean = self.batch.of_prompts(self.replay.clean.mlp_direct_effect[layer])
        change = (write * self.d).sum(-1) / self.scale - clean
        self.from_mlps += change
        self.sizes += change.abs()
        self.by_mlp[:, :, layer] = (change * self.weight).sum(-1)


@contextmanager
def _mlp_runs_on(mlp: nn.Module, needed: Bool[Tensor, "row prompt predicted"] | None) -> Iterator[None]:
    """Let the last layer's MLP run on the positions that are needed alone, and give zeros elsewhere; None: on all.

    Nothing after it mixes positions, so that no other is missed.
    """
    if needed is None:
        yield
        return
    rows = torch.nonzero(needed.flatten()).squeeze(1)
    forward = mlp.forward

    def some(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wanted = hidden.flatten(0, -2)[rows]
        # As many dimensions as the MLP gets in the model's own run.
        found = forward(wanted.unsqueeze(0) if hidden.ndim > 2 else wanted, *args, **kwargs).flatten(0, -2)
        out = found.new_zeros(hidden[..., 0].numel(), found.shape[-1])
        return out.index_copy_(0, rows, found).unflatten(0, hidden.shape[:-1])

    with forward_is(mlp, some):
        yield
