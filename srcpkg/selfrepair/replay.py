"""Suffix replay: the ablated run of many heads at once, from the clean residual of their layer.

An ablated head changes nothing before its own layer, so its ablated run repeats the clean ``resid_pre`` of that layer, calls
the model's own decoder layers from there on, and overwrites the head's slice of the attention output projection's input.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
        for start in range(0, len(heads), self.heads_per_batch):
            batch = slice(start, start + self.heads_per_batch)
            with torch.inference_mode():
                yield self._ablate_batch(
                    layer, list(heads[batch]), replacement, None if selected is None else selected[batch]
                )

    def _ablate_batch(self, layer: int, heads: list[int], replacement: Tensor, selected: Tensor | None) -> Ablated:
        model, clean = self.model, self.clean
        n_rows = len(heads)
        shape = (n_rows, self.n_prompts, self.length - 1)
        from_heads = torch.zeros(shape, dtype=model.dtype, device=model.device)
        from_mlps = torch.zeros_like(from_heads)
        repair_by_head = torch.zeros(n_rows, model.n_layers, model.n_heads, dtype=model.dtype, device=model.device)
        repair_by_mlp = torch.zeros(n_rows, model.n_layers, dtype=model.dtype, device=model.device)
        weight = None if selected is None else selected.to(model.device, model.dtype)

        def rows(flat: Tensor) -> Tensor:
            return flat.unflatten(0, (n_rows, self.n_prompts))

        def overwrite_z(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = rows(by_head(model, args[0])).clone()
            for row, head in enumerate(heads):
                z[row, :, :, head] = replacement[:, :, head]
            return (z.flatten(-2).flatten(0, 1), *args[1:])

        def measure_heads(at: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                z = rows(by_head(model, args[0])) - model.value_constant[at]
                change = head_direct_effects(z, self.projected[at]) - clean.head_direct_effect[at]
                from_heads.add_(change.sum(-1))
                if weight is not None:
                    repair_by_head[:, at] = torch.einsum("rpth,rpt->rh", change, weight)

            return hook

        def measure_mlp(at: int) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
                write = written(out, (n_rows, self.n_prompts, self.length))[..., :-1, :]
                change = (write * self.scaled).sum(-1) - clean.mlp_direct_effect[at]
                from_mlps.add_(change)
                if weight is not None:
                    repair_by_mlp[:, at] = (change * weight).sum((-1, -2))

            return hook

        # Where attention and MLP run in parallel, the layer's own MLP reads what it read in the clean run: exactly no change.
        first_mlp = layer + 1 if model.parallel else layer

        def register() -> list[Any]:
            later = range(layer + 1, model.n_layers)
            return [
                model.attention_out(layer).register_forward_pre_hook(overwrite_z),
                *(model.attention_out(at).register_forward_pre_hook(measure_heads(at)) for at in later),
                *(model.mlp(at).register_forward_hook(measure_mlp(at)) for at in range(first_mlp, model.n_layers)),
            ]

        resid = clean.resid_pre[layer].expand(n_rows, -1, -1, -1).flatten(0, 1)
        with hooked(register):
            for at in range(layer, model.n_layers):
                resid = self.calls[at].replay(model.layers[at], resid)
        final = rows(resid)[..., :-1, :]
        ablated_scale = model.final_norm.scale(final)
        frozen_logit = (final * self.scaled).sum(-1)  # r' . d / s
        to_ablated = clean.scale / ablated_scale
        at_heads = torch.tensor(heads, device=model.device)
        z_ablated = replacement[:, :, at_heads] - model.value_constant[layer][at_heads]
        ablated_effect = head_direct_effects(z_ablated, self.projected[layer][:, :, at_heads])
        return Ablated(
            direct_effect=clean.head_direct_effect[layer][..., at_heads].movedim(-1, 0),
            ablated_direct_effect=ablated_effect.movedim(-1, 0),
            logit_change=frozen_logit * to_ablated - (clean.correct_logit - self.directions.constant),
            self_repair_from_heads=from_heads,
            self_repair_from_mlps=from_mlps,
            self_repair_from_layernorm=frozen_logit * (to_ablated - 1),
            ablated_scale=ablated_scale,
            repair_by_head=repair_by_head,
            repair_by_mlp=repair_by_mlp,
        )


def group_by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Heads (layer, head) as lists of heads by layer, layers ascending, heads in the order given."""
    grouped: dict[int, list[int]] = {}
    for layer, head in heads:
        grouped.setdefault(layer, []).append(head)
    return dict(sorted(grouped.items()))
