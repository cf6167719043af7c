"""Suffix replay: the ablated run of many heads at once, from the clean residual of their layer.

An ablated head changes nothing before its own write, so its ablated run starts from the clean ``resid_pre`` of its layer, adds
what the head would write to the clean output of that layer's attention, and calls the model's own decoder layers from there on.
The last position of a prompt predicts nothing and no other position reads it, so ablated runs leave it out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.engine.batches import Batch, cut_batches, whole_batches
from selfrepair.engine.clean import CleanRun, Directions, by_head, head_direct_effects, output, project
from selfrepair.model.allocator import block_of_its_own
from selfrepair.model.calls import forward_is, gives, hooked
from selfrepair.model.experts import Routed
from selfrepair.model.model import COMPONENTS, Model
from selfrepair.quantities import CAPPED, CHOSEN_EXPERTS, OWN_POSTNORM, POSTNORMS


@dataclass(frozen=True)
class Ablated:
    """What a batch of ablations gives, in logits but for the scale; "head" and "prompt" are the batch's grid.

    Attributes:
        values: By name of `selfrepair.model.model.Model.quantities` [head, prompt, pos-1] (docs/definitions.md, Effects).
        ablated_scale: Final norm's scale in the ablated run [head, prompt, pos-1].
        repair_by_head: [head, prompt, layer, head], summed over the selected tokens of the ablated head; logits.
        repair_by_mlp: [head, prompt, layer], likewise.
        summed: Sizes of the terms that cancel in the identity [head, prompt, pos-1], logits: all direct effects and what they
            change by, the token's constant, and the longest residual of the run times |d| / s. Rounding errors grow with these.
    """

    values: Mapping[str, Float[Tensor, "row prompt predicted"]]
    ablated_scale: Float[Tensor, "row prompt predicted"]
    repair_by_head: Float[Tensor, "row prompt layer head"]
    repair_by_mlp: Float[Tensor, "row prompt layer"]
    summed: Float[Tensor, "row prompt predicted"]


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
                scale = clean.postnorm_scale("attention", layer)
                self.projected[layer] = project(model, layer, self.scaled, scale)

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

    def ablate_layer(
        self,
        layer: int,
        component: str,
        change: Float[Tensor, "prompt pos d_model"],
        clean_output: Float[Tensor, "prompt pos d_model"] | None = None,
    ) -> Ablated:
        """Let the whole attention or the whole MLP of a layer give something else, on every prompt.

        Args:
            layer: The layer.
            component: "attention" or "mlp".
            change: What it gives, less what it gives in the clean run.
            clean_output: What it gives in the clean run; wanted of an MLP that has a post-norm.

        Returns:
            Results of one row, where "self_repair_from_*" is what later components and the final norm change by, and
            ``repair_by_*`` are summed over all tokens. The direct effect of an attention is that of all its heads.

        Raises:
            ValueError: Another component.
        """
        model, clean, change = self.model, self.clean, _predicting(change)
        if component not in COMPONENTS:
            raise ValueError(f"component is {component!r}; wanted one of {', '.join(COMPONENTS)}")
        with torch.inference_mode():
            batch = Batch(rows=[0], heads=[0])
            changes = _Changes(self, batch, torch.ones(1, self.n_prompts, self.length, dtype=torch.bool))
            write = model.written(change, component, layer, clean.postnorm_scale(component, layer))
            removed = (write * self.scaled).sum(-1)
            if component == "attention":
                start, effect = self._start(layer), clean.head_direct_effect[layer].sum(-1)
            else:
                start = _Start(layer, _predicting(clean.z[layer]), resid=self._after(layer), attention=None)
                effect = clean.mlp_direct_effect[layer]
            if start.attention is None:  # what is added to the residual that leaves the layer
                if model.postnorms[component][layer] is not None:
                    assert clean_output is not None
                    before = _predicting(clean_output)
                    changes.see_postnorm(component, layer, (before + change)[None], own=True)
                    write = model.normed(before + change, component, layer) - model.normed(before, component, layer)
                change = write
            return self._measure(
                batch,
                self._run_changed(start, batch, change[None], changes),
                changes,
                direct_effect=effect[None],
                ablated_direct_effect=(effect + removed)[None],
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
        logit_change = frozen_logit * to_ablated - clean_logit
        values = {
            "direct_effect": direct_effect,
            "ablated_direct_effect": ablated_direct_effect,
            "logit_change": logit_change,
            "self_repair": logit_change - (ablated_direct_effect - direct_effect),
            "self_repair_from_heads": changes.from_heads,
            "self_repair_from_mlps": changes.from_mlps,
            POSTNORMS: changes.from_postnorms,
            "self_repair_from_layernorm": frozen_logit * (to_ablated - 1),
            OWN_POSTNORM: changes.from_own_postnorm,
            CHOSEN_EXPERTS: changes.from_chosen_experts,
        }
        if self.model.logit_cap is not None:
            values[CAPPED] = logit_change + self._capped_off(batch, final, ablated_scale, logit_change)
        return Ablated(
            values={name: values[name] for name in self.model.quantities},
            ablated_scale=ablated_scale,
            repair_by_head=changes.by_head,
            repair_by_mlp=changes.by_mlp,
            summed=batch.of_prompts(self.effect_sizes)
            + changes.sizes
            + changes.longest * batch.of_prompts(self.d_length),
        )

    def _capped_off(self, batch: Batch, final: Tensor, ablated_scale: Tensor, logit_change: Tensor) -> Tensor:
        """What the cap makes of a change of the correct logit, less that change [row, prompt, pos-1].

        It caps logits that are not centred.
        """
        model, clean = self.model, self.clean
        assert clean.mean_logit is not None
        ablated_mean = final @ model.mean_direction / ablated_scale + model.mean_constant
        before = batch.of_prompts(clean.correct_logit + clean.mean_logit)
        after = batch.of_prompts(clean.correct_logit) + logit_change + ablated_mean
        return (model.capped(after) - after) - (model.capped(before) - before)

    def _run(
        self, start: "_Start", batch: Batch, replacement: Tensor, changes: "_Changes"
    ) -> Float[Tensor, "row prompt predicted d_model"]:
        """The final residual with each head ablated; ``changes`` sees every component on the way."""
        change = batch.write(batch.of_heads(replacement - start.z), self.model.W_O[start.layer])
        if start.attention is None:
            change = self.model.written(change, "attention", start.layer, None)
        return self._run_changed(start, batch, change, changes)

    def _run_changed(
        self, start: "_Start", batch: Batch, change: Tensor, changes: "_Changes"
    ) -> Float[Tensor, "row prompt predicted d_model"]:
        """The final residual with ``change`` added to what is changed first; ``changes`` sees every component on the way.

        That is the output of the layer's attention, or the residual that leaves the layer.
        """
        model, layer = self.model, start.layer
        clean_resid = batch.of_prompts(start.resid)
        if start.attention is None:
            first, resid, attention = layer + 1, clean_resid + change, None
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
        self.d, self.scale = batch.of_prompts(replay.directions.d), batch.of_prompts(replay.clean.scale)
        shape = batch.shape(replay.n_prompts)
        self.shape = (*shape, replay.length - batch.cut)
        self.selected = batch.of_selection(selected).to(model.device)
        self.weight = self.selected.to(model.dtype)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=model.dtype, device=model.device)

        self.from_heads, self.from_mlps = zeros(*self.shape), zeros(*self.shape)
        self.from_postnorms, self.from_own_postnorm = zeros(*self.shape), zeros(*self.shape)
        self.from_chosen_experts = zeros(*self.shape)
        self.routed: dict[int, Routed] = {}
        self.sizes, self.longest = zeros(*self.shape), zeros(*self.shape)
        self.by_head, self.by_mlp = zeros(*shape, model.n_layers, model.n_heads), zeros(*shape, model.n_layers)

    def hooks(self, layer: int) -> list[Any]:
        """Watch every component that can change when a head of ``layer`` is ablated."""
        model = self.replay.model
        later, with_own = range(layer + 1, model.n_layers), range(layer, model.n_layers)
        mlps = later if model.parallel else with_own
        normed = [at for at in with_own if model.postnorms["attention"][at] is not None]
        return [
            *(model.attention_out(at).register_forward_pre_hook(partial(self._see_heads, at)) for at in later),
            *(model.mlp(at).register_forward_hook(partial(self._see_mlp, at)) for at in mlps),
            *(experts.watch(partial(self.routed.__setitem__, at)) for at in mlps if (experts := model.experts[at])),
            *(
                model.attention(at).register_forward_hook(partial(self._see_attention, at, own=at == layer))
                for at in normed
            ),
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
        given = output(out, self.shape)
        change = self._effect("mlp", layer, given) - self.batch.of_prompts(self.replay.clean.mlp_direct_effect[layer])
        self.from_mlps += change
        self.sizes += change.abs()
        self.by_mlp[:, :, layer] = (change * self.weight).sum(-1)
        self.see_postnorm("mlp", layer, given)
        if layer in self.routed:
            self.from_chosen_experts += self._by_choice(layer, self.routed.pop(layer))

    def _by_choice(self, layer: int, routed: Routed) -> Float[Tensor, "row prompt predicted"]:
        """Direct effect of the experts that came in, less the clean one of those that went out, by the clean scales."""
        model, clean, view = self.replay.model, self.replay.clean, self.batch.of_prompts
        experts = model.experts[layer]
        assert experts is not None
        assert clean.chosen_experts is not None
        assert clean.expert_direct_effect is not None
        n_tokens = self.from_mlps.numel()
        at = torch.arange(n_tokens, device=model.device)
        if len(routed.chosen) != n_tokens:  # the last layer's MLP runs at the selected tokens alone
            at = at[self.selected.flatten()]

        def of_tokens(values: Tensor, tokens: Tensor) -> Tensor:
            """Of the clean run, which rows of the grid share."""
            flat = values.flatten(0, -2)
            return flat[tokens % len(flat)]

        before = of_tokens(view(clean.chosen_experts[layer]), at)[:, :, None]
        after = routed.chosen[:, None, :]
        went, came = (before != after).all(2), (before != after).all(1)
        effect = -(of_tokens(view(clean.expert_direct_effect[layer]), at) * went).sum(-1)
        token, slot = torch.nonzero(came, as_tuple=True)
        if len(token):
            given = experts.given(routed, token, slot)
            scale = clean.postnorm_scale("mlp", layer)
            scale = None if scale is None else of_tokens(view(scale)[..., None], at[token])[:, 0]
            along = model.written(of_tokens(self.d, at[token]), "mlp", layer, scale)
            own = (given * along).sum(-1) / of_tokens(self.scale[..., None], at[token])[:, 0]
            effect.index_add_(0, token, own)
        found = effect.new_zeros(n_tokens).index_copy_(0, at, effect)
        return found.view(self.shape)

    def _see_attention(self, layer: int, _: nn.Module, __: Any, out: Tensor | tuple[Any, ...], *, own: bool) -> None:
        self.see_postnorm("attention", layer, output(out, self.shape), own=own)

    def see_postnorm(
        self, component: str, layer: int, given: Float[Tensor, "row prompt predicted d_model"], own: bool = False
    ) -> None:
        """Add what the change of a post-norm's scale does, from the whole output that goes through it.

        Args:
            component: "attention" or "mlp".
            layer: The layer.
            given: The output.
            own: It is what was ablated.
        """
        norm = self.replay.model.postnorms[component][layer]
        if norm is None:
            return
        given = given.to(self.replay.model.dtype)
        effect = self._effect(component, layer, given)
        scale = self.replay.clean.postnorm_scale(component, layer)
        assert scale is not None
        change = effect * (self.batch.of_prompts(scale) / norm.scale(given) - 1)
        self.from_postnorms += change
        self.sizes += effect.abs() + change.abs()
        if own:
            self.from_own_postnorm += change

    def _effect(self, component: str, layer: int, given: Tensor) -> Tensor:
        """Direct effect of a component's output [row, prompt, pos-1], by the clean scales."""
        scale = self.replay.clean.postnorm_scale(component, layer)
        scale = None if scale is None else self.batch.of_prompts(scale)
        return (given * self.replay.model.written(self.d, component, layer, scale)).sum(-1) / self.scale


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

    def some(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        wanted = hidden.flatten(0, -2)[rows]
        # As many dimensions as the MLP gets in the model's own run.
        given = forward(wanted.unsqueeze(0) if hidden.ndim > 2 else wanted, *args, **kwargs)
        found = (given[0] if isinstance(given, tuple) else given).flatten(0, -2)
        out = found.new_zeros(hidden[..., 0].numel(), found.shape[-1])
        out = out.index_copy_(0, rows, found).unflatten(0, hidden.shape[:-1])
        return (out, *given[1:]) if isinstance(given, tuple) else out

    with forward_is(mlp, some):
        yield
