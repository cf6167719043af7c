"""Suffix replay: the ablated run of many heads at once, from the clean residual of their layer.

An ablated head changes nothing before its own write, so its ablated run starts from the clean ``resid_pre`` of its layer, adds
what the head would write to the clean output of that layer's attention, and calls the model's own decoder layers from there on.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.clean import BATCH_TOKENS, CleanRun, Directions, by_head, head_direct_effects, project, written
from selfrepair.models import Model, hooked


@dataclass(frozen=True)
class Ablated:
    """What the ablation of some heads gives, in logits but for the scale.

    Attributes:
        direct_effect, ablated_direct_effect, logit_change, self_repair_from_heads, self_repair_from_mlps,
            self_repair_from_layernorm: [head, prompt, pos-1] (docs/definitions.md, Effects).
        ablated_scale: Final norm's scale in the ablated run [head, prompt, pos-1].
        repair_by_head: [head, layer, head], summed over the selected tokens of the ablated head; logits.
        repair_by_mlp: [head, layer], likewise.
    """

    direct_effect: Float[Tensor, "row prompt predicted"]
    ablated_direct_effect: Float[Tensor, "row prompt predicted"]
    logit_change: Float[Tensor, "row prompt predicted"]
    self_repair_from_heads: Float[Tensor, "row prompt predicted"]
    self_repair_from_mlps: Float[Tensor, "row prompt predicted"]
    self_repair_from_layernorm: Float[Tensor, "row prompt predicted"]
    ablated_scale: Float[Tensor, "row prompt predicted"]
    repair_by_head: Float[Tensor, "row layer head"]
    repair_by_mlp: Float[Tensor, "row layer"]


class SuffixReplay:
    """Ablated runs of some prompts, from their clean run.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos] of the prompts.
        clean: Their clean run.
        batch_tokens: Tokens that go through the layers at a time; the peak of memory is proportional to it.
    """

    def __init__(
        self, model: Model, tokens: Int[Tensor, "prompt pos"], clean: CleanRun, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.model = model
        self.clean = clean
        self.n_prompts, self.length = tokens.shape
        self.heads_per_batch = max(1, batch_tokens // tokens.numel())
        with torch.inference_mode():
            self.directions = Directions.of(model, tokens)
            self.scaled = self.directions.d / clean.scale[..., None]
            self.projected = [project(model, layer, self.scaled) for layer in range(model.n_layers)]
        self.calls = model.layer_calls(self.length)

    def ablate(
        self,
        layer: int,
        heads: Sequence[int],
        replacement: Float[Tensor, "prompt pos head d_head"],
        selected: Bool[Tensor, "row prompt predicted"] | None = None,
    ) -> Iterator[Ablated]:
        """Ablate each of ``heads`` of a layer alone, a batch of heads at a time.

        Args:
            layer: Their layer.
            heads: Head indices.
            replacement: What takes the place of the layer's ``z``; only the ablated head's slice is used.
            selected: Which tokens count in ``repair_by_*`` of each head [len(heads), prompt, pos-1]; None counts none.

        Yields:
            The heads' results, in the order of ``heads``.
        """
        with torch.inference_mode():
            start = self._start(layer)
        for first in range(0, len(heads), self.heads_per_batch):
            batch = slice(first, first + self.heads_per_batch)
            with torch.inference_mode():
                yield self._ablate_batch(
                    start, heads[batch], replacement, None if selected is None else selected[batch]
                )

    def _start(self, layer: int) -> "_Start":
        """What the ablated runs of all heads of a layer share, which is all but the head's own write."""
        z = self.clean.z[layer]
        if not self.model.parallel:
            attention = self.model.attention_out(layer)(z.flatten(-2))
            return _Start(layer, z, resid=self.clean.resid_pre[layer], attention=attention)
        # Attention and MLP read the same residual, so that the layer's MLP repeats its clean output too.
        if layer + 1 < self.model.n_layers:
            after = self.clean.resid_pre[layer + 1]
        else:
            after = self.calls[layer].replay(self.model.layers[layer], self.clean.resid_pre[layer])
        return _Start(layer, z, resid=after, attention=None)

    def _ablate_batch(
        self, start: "_Start", heads: Sequence[int], replacement: Tensor, selected: Tensor | None
    ) -> Ablated:
        model, clean, layer = self.model, self.clean, start.layer
        at = torch.tensor(heads, device=model.device)
        changes = _Changes(self, len(heads), selected)
        final = self._run(start, at, replacement, changes)[..., :-1, :]
        ablated_scale = model.final_norm.scale(final)
        frozen_logit = (final * self.scaled).sum(-1)  # r' . d / s
        to_ablated = clean.scale / ablated_scale
        z_ablated = replacement[:, :, at] - model.value_constant[layer][at]
        return Ablated(
            direct_effect=clean.head_direct_effect[layer][..., at].movedim(-1, 0),
            ablated_direct_effect=head_direct_effects(z_ablated, self.projected[layer][:, :, at]).movedim(-1, 0),
            logit_change=frozen_logit * to_ablated - (clean.correct_logit - self.directions.constant),
            self_repair_from_heads=changes.from_heads,
            self_repair_from_mlps=changes.from_mlps,
            self_repair_from_layernorm=frozen_logit * (to_ablated - 1),
            ablated_scale=ablated_scale,
            repair_by_head=changes.by_head,
            repair_by_mlp=changes.by_mlp,
        )

    def _run(
        self, start: "_Start", heads: Tensor, replacement: Tensor, changes: "_Changes"
    ) -> Float[Tensor, "row prompt pos d_model"]:
        """The final residual with each head ablated; ``changes`` sees every component on the way."""
        model, layer = self.model, start.layer
        z_change = (replacement - start.z)[:, :, heads].movedim(2, 0)
        write = torch.einsum("rptd,rdm->rptm", z_change, model.W_O[layer][heads])
        if start.attention is None:
            first, resid, attention = layer + 1, start.resid + write, None
        else:
            first, resid, attention = layer, start.resid.expand_as(write), start.attention + write
        resid = resid.flatten(0, 1)
        with hooked(lambda: changes.hooks(layer)), _attention_gives(model.attention(layer), attention):
            for at in range(first, model.n_layers):
                resid = self.calls[at].replay(model.layers[at], resid)
        return resid.unflatten(0, write.shape[:2])


@dataclass(frozen=True)
class _Start:
    """Where the ablated runs of a layer's heads begin.

    Attributes:
        layer: The layer.
        z: Its clean ``z`` [prompt, pos, head, d_head].
        resid: Clean residual [prompt, pos, d_model] that enters the layer; that leaves it, in a parallel model.
        attention: Clean output of its attention [prompt, pos, d_model]; None in a parallel model, where it is in ``resid``.
    """

    layer: int
    z: Tensor
    resid: Tensor
    attention: Tensor | None


class _Changes:
    """Collects what the direct effects of later components change by, while the later layers run."""

    def __init__(self, replay: SuffixReplay, n_rows: int, selected: Tensor | None) -> None:
        model = replay.model
        self.replay = replay
        self.shape = (n_rows, replay.n_prompts, replay.length)
        self.weight = None if selected is None else selected.to(model.device, model.dtype)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=model.dtype, device=model.device)

        self.from_heads, self.from_mlps = (zeros(n_rows, replay.n_prompts, replay.length - 1) for _ in range(2))
        self.by_head, self.by_mlp = zeros(n_rows, model.n_layers, model.n_heads), zeros(n_rows, model.n_layers)

    def hooks(self, layer: int) -> list[Any]:
        """Watch every component that can change when a head of ``layer`` is ablated."""
        model = self.replay.model
        later = range(layer + 1, model.n_layers)
        mlps = later if model.parallel else range(layer, model.n_layers)
        return [
            *(model.attention_out(at).register_forward_pre_hook(partial(self._see_heads, at)) for at in later),
            *(model.mlp(at).register_forward_hook(partial(self._see_mlp, at)) for at in mlps),
        ]

    def _see_heads(self, layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        model = self.replay.model
        z = by_head(model, args[0]).unflatten(0, self.shape[:2]) - model.value_constant[layer]
        change = head_direct_effects(z, self.replay.projected[layer]) - self.replay.clean.head_direct_effect[layer]
        self.from_heads += change.sum(-1)
        if self.weight is not None:
            self.by_head[:, layer] = torch.einsum("rpth,rpt->rh", change, self.weight)

    def _see_mlp(self, layer: int, _: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
        write = written(out, self.shape)[..., :-1, :]
        change = (write * self.replay.scaled).sum(-1) - self.replay.clean.mlp_direct_effect[layer]
        self.from_mlps += change
        if self.weight is not None:
            self.by_mlp[:, layer] = (change * self.weight).sum((-1, -2))


@contextmanager
def _attention_gives(attention: nn.Module, out: Tensor | None) -> Iterator[None]:
    """Let an attention module give ``out`` [row, prompt, pos, d_model], known already; None lets it compute."""
    if out is None:
        yield
        return
    given = (out.flatten(0, 1), None)
    attention.forward = lambda *_, **__: given
    try:
        yield
    finally:
        del attention.forward


def group_by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Heads (layer, head) as lists of heads by layer, layers ascending, heads in the order given."""
    grouped: dict[int, list[int]] = {}
    for layer, head in heads:
        grouped.setdefault(layer, []).append(head)
    return dict(sorted(grouped.items()))
