"""A few of a job's own ablations repeated by plain hooked forwards of the whole model, on their own prompts at full length.

Replay starts in the middle of the model, leaves positions out and calls layers with recorded arguments. What is here shares
none of that: a prompt goes through the model from its token ids to its logits, a hook puts in what an ablation puts in, other
hooks look. If the two differ beyond rounding, the job stops.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.engine.heads import Heads
from selfrepair.engine.rounding import BFLOAT16_TIMES, REPEATED_ROUNDINGS, rounding
from selfrepair.model.experts import Routed
from selfrepair.model.model import Model
from selfrepair.quantities import CAPPED, CHOSEN_EXPERTS, NOISE_OF, OWN_POSTNORM, POSTNORMS

logger = logging.getLogger(__name__)

SHARE = 0.01
"""Of the operations of a job, those that its proof may take; one ablation is always repeated."""
HEADS_A_PROMPT = 3
UNEMBED_AT_ONCE = 256
"""Positions that are unembedded at a time: their logits over the whole vocabulary are the largest thing in memory."""

Edit = Callable[[], Any]
"""Registers one hook, and returns its handle."""
Edits = Callable[[bool], Edit]
"""The same for a run in float32 (true), and for one that rounds as the model does."""


@dataclass(frozen=True)
class PlainRun:
    """What hooks see in one prompt's run through the model.

    Attributes:
        resid: Per layer, the residual that enters it [pos, d_model].
        z: Per layer [pos, head, d_head].
        mlp: Per layer, what its MLP gives [pos, d_model].
        attention: Likewise its attention; empty for models without post-norms.
        routed: By layer that is a mixture, what its experts are called with.
        final: The final residual [pos, d_model]; None in a run that was stopped.
        normed: What the final norm gives [pos, d_model]; likewise.
        watched: What went into each module that was watched besides, [pos, width].
    """

    resid: list[Tensor]
    z: list[Tensor]
    mlp: list[Tensor]
    attention: list[Tensor]
    routed: dict[int, Routed]
    final: Tensor | None
    normed: Tensor | None
    watched: list[Tensor]


class _Stopped(Exception):  # noqa: N818
    """A plain run went as far as it was wanted."""


def plain_run(
    model: Model,
    tokens: Int[Tensor, " pos"],
    edits: Sequence[Edit] = (),
    watch: Sequence[nn.Module] = (),
    until: int | None = None,
    exact: bool = True,
) -> PlainRun:
    """Run one prompt through the whole model.

    Args:
        model: The model.
        tokens: Token ids.
        edits: Hooks that change what modules read or write, set before those that look.
        watch: More modules whose inputs are kept.
        until: Stop when this layer has run: what comes after it is not looked at.
        exact: Compute in float32 what a bfloat16 model rounds.
    """
    resid, z, mlp, attention, final, watched = (list[Tensor]() for _ in range(6))
    routed: dict[int, Routed] = {}
    normed = None

    def stop(*_: Any) -> None:
        raise _Stopped

    def keep_input(into: list[Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(_flat(args[0] if args else kwargs["hidden_states"]).to(model.dtype, copy=True))

    def keep_output(into: list[Tensor], _: nn.Module, __: Any, out: Any) -> None:
        into.append(_flat(out[0] if isinstance(out, tuple) else out).to(model.dtype, copy=True))

    layers = range(model.n_layers)
    looked = [(resid, model.layers[at]) for at in layers] + [(z, model.attention_out(at)) for at in layers]
    looked += [(final, model.final_norm_module), *((watched, module) for module in watch)]
    with ExitStack() as stack:
        for edit in edits:
            stack.callback(edit().remove)
        for into, module in looked:
            handle = module.register_forward_pre_hook(partial(keep_input, into), with_kwargs=True)
            stack.callback(handle.remove)
        for at in layers:
            stack.callback(model.mlp(at).register_forward_hook(partial(keep_output, mlp)).remove)
            if model.has_postnorms:
                stack.callback(model.attention_out(at).register_forward_hook(partial(keep_output, attention)).remove)
            if (experts := model.experts[at]) is not None:
                stack.callback(experts.watch(partial(routed.__setitem__, at)).remove)
        if until is not None:
            stack.callback(model.layers[until].register_forward_hook(stop).remove)
        stack.enter_context(torch.inference_mode())
        with model.running(exact), suppress(_Stopped):
            out = model.decoder(input_ids=tokens[None].to(model.device), use_cache=False)
            normed = out.last_hidden_state[0]
        heads = [each.unflatten(-1, (model.n_heads, model.d_head)) for each in z]
        # Some models use their final norm before the first layer too.
        last = final[-1] if normed is not None else None
        return PlainRun(resid, heads, mlp, attention, routed, last, normed, watched)


def correct_logits(
    model: Model, normed: Tensor, tokens: Int[Tensor, " pos"], capped: bool = False
) -> Float[Tensor, " predicted"]:
    """Logits of the tokens that follow, by the model's own unembedding.

    Args:
        model: The model.
        normed: What its final norm gives [pos-1, d_model].
        tokens: Token ids.
        capped: Cap these logits, but not what they are centred by.

    Returns:
        Less the mean over the vocabulary, if the model's logits are centred.
    """
    unembed = model.hf.get_output_embeddings()
    targets = tokens[1:].to(model.device)
    parts = []
    with torch.inference_mode(), model.running(exact=True):
        for places in torch.arange(len(targets), device=model.device).split(UNEMBED_AT_ONCE):
            logits = model.logit_factor * unembed(normed[places])
            correct = logits.gather(-1, targets[places, None])[:, 0]
            correct = model.capped(correct) if capped else correct
            parts.append(correct - logits.mean(-1) if model.center_unembed else correct)
    return torch.cat(parts)


def replaced_z(model: Model, layer: int, heads: int | slice, z: Tensor) -> Edit:
    """Put ``z`` [pos, d_head], or [pos, head, d_head] for a slice, in the place of some heads' own."""

    def replace(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = args[0].clone()
        changed.view(-1, model.n_heads, model.d_head)[:, heads] = z.to(changed.dtype)
        return (changed, *args[1:])

    return partial(model.attention_out(layer).register_forward_pre_hook, replace)


def replaced_mlp(model: Model, layer: int, write: Tensor) -> Edit:
    """Put ``write`` [pos, d_model] in the place of what a layer's MLP writes."""

    def replace(_: nn.Module, __: Any, out: Any) -> Any:
        own = out[0] if isinstance(out, tuple) else out
        changed = write.to(own.dtype).reshape(own.shape)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    return partial(model.mlp(layer).register_forward_hook, replace)


def replaced_attention_input(model: Model, layer: int, hidden: Tensor, places: slice | Tensor = slice(None)) -> Edit:
    """Let a layer's attention read ``hidden`` [place, d_model] at some positions."""

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        changed = (args[0] if args else kwargs["hidden_states"]).clone()
        changed[0, places] = hidden.to(changed.dtype)
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return partial(model.attention(layer).register_forward_pre_hook, replace, with_kwargs=True)


def _flat(hidden: Tensor) -> Tensor:
    """A batch of one as [pos, width]; some models flatten prompts and positions before their MLP."""
    return hidden.reshape(-1, hidden.shape[-1])


class Seen:
    """A plain run as it meets the correct tokens; what is not asked for is not computed.

    Args:
        of: The prompt.
        run: Its run, clean or ablated, to the end.

    Attributes:
        final, normed: The final residual, and what the final norm gives [pos-1, d_model].
        scale: Of the final norm [pos-1].
    """

    def __init__(self, of: "PlainPrompt", run: PlainRun) -> None:
        assert run.final is not None
        assert run.normed is not None
        self.of, self.run, self.final, self.normed = of, run, run.final[:-1], run.normed[:-1]
        with torch.inference_mode():
            self.scale = of.model.final_norm.scale(self.final)

    @cached_property
    def heads(self) -> Tensor:
        """Direct effects of every head [layer, pos-1, head], logits, by the clean scale."""
        return torch.stack([self.of.head_effects(self.run, layer) for layer in range(self.of.model.n_layers)])

    @cached_property
    def mlps(self) -> Tensor:
        """Direct effects of every MLP [layer, pos-1], likewise."""
        return self._effects("mlp", self.run.mlp)

    @cached_property
    def postnorms(self) -> dict[str, Tensor]:
        """Of "attention" and "mlp", scales of post-norms [layer, pos-1]; empty for models without."""
        model = self.of.model
        if not model.has_postnorms:
            return {}
        with torch.inference_mode():
            return {
                component: torch.stack(
                    [
                        torch.ones_like(self.scale) if norm is None else norm.scale(out[:-1])
                        for norm, out in zip(model.postnorms[component], outs, strict=True)
                    ]
                )
                for component, outs in (("attention", self.run.attention), ("mlp", self.run.mlp))
            }

    @cached_property
    def by_postnorm(self) -> dict[str, Tensor]:
        """By component, what the change of each post-norm's scale does [layer, pos-1], logits; empty for models without."""
        clean, outs = self.of.clean.postnorms, {"attention": self.run.attention, "mlp": self.run.mlp}
        return {
            component: self._effects(component, outs[component]) * (clean[component] / scales - 1)
            for component, scales in self.postnorms.items()
        }

    def _effects(self, component: str, outs: list[Tensor]) -> Tensor:
        """Direct effects of the whole output of each layer's component [layer, pos-1], logits, by clean scales."""
        with torch.inference_mode():
            along = [self.of.seen_by(component, layer) for layer in range(len(outs))]
            return torch.stack([(out[:-1] * d).sum(-1) for out, d in zip(outs, along, strict=True)])

    @cached_property
    def by_choice(self) -> Tensor:
        """Effect of each expert that came in, minus that of each that went out [change, pos-1], logits."""
        with torch.inference_mode(), self.of.model.running(exact=True):
            return torch.stack([torch.zeros_like(self.scale), *self._by_choice()])

    def _by_choice(self) -> Iterator[Tensor]:
        for layer, now in self.run.routed.items():
            before = self.of.clean.run.routed[layer]
            for expert in torch.cat([now.chosen, before.chosen]).unique().tolist():
                has, had = ((run.chosen == expert).any(-1)[:-1] for run in (now, before))
                for sign, run, rows in ((1, now, has & ~had), (-1, before, had & ~has)):
                    if bool(rows.any()):
                        change = torch.zeros_like(self.scale)
                        change[rows] = sign * self.of.expert_effects(layer, expert, run, rows)
                        yield change

    @cached_property
    def logit(self) -> Tensor:
        """Correct logits [pos-1], by the model's own final norm and unembedding."""
        return correct_logits(self.of.model, self.normed, self.of.tokens)

    @cached_property
    def capped_logit(self) -> Tensor:
        """The same with the cap, which does not reach what they are centred by."""
        return correct_logits(self.of.model, self.normed, self.of.tokens, capped=True)

    @property
    def sizes(self) -> Tensor:
        """Sizes of all direct effects [pos-1]."""
        sizes = self.heads.abs().sum((0, 2)) + self.mlps.abs().sum(0)
        return sizes + sum(self._effects("attention", self.run.attention).abs()) if self.run.attention else sizes


@dataclass(frozen=True)
class Effects:
    """Every quantity of an ablation on one prompt, from a clean and an ablated plain run (docs/definitions.md, Effects).

    Attributes:
        values: By quantity of the model, and ablated_scale [pos-1].
        by_head, by_mlp: Change of every component's direct effect, the ablated one's left out [layer, pos-1, head],
            [layer, pos-1].
        summed: Sizes of the terms that cancel [pos-1].
        seen: The ablated run.
        rounded: Of a bfloat16 model, the same of plain runs that round as it does.
    """

    values: dict[str, Tensor]
    by_head: Tensor
    by_mlp: Tensor
    summed: Tensor
    seen: Seen
    rounded: "Effects | None" = None

    @property
    def both(self) -> "list[Effects]":
        """These, and those that are rounded, where there are."""
        return [self] if self.rounded is None else [self, self.rounded]


class PlainPrompt:
    """One prompt, its clean plain run, and what ablations of it are held against.

    Args:
        model: The model.
        tokens: Token ids.
        watch: Modules whose inputs are kept in the clean run.
        exact: Compute in float32 what a bfloat16 model rounds.

    Attributes:
        rounded: Of a bfloat16 model, the prompt again in plain runs that round as it does; None where they would be the same.
    """

    def __init__(
        self, model: Model, tokens: Int[Tensor, " pos"], watch: Sequence[nn.Module] = (), exact: bool = True
    ) -> None:
        self.model, self.tokens, self.exact = model, tokens, exact
        with torch.inference_mode():
            self.d = model.direction(tokens[1:].to(model.device))
            self.clean = Seen(self, plain_run(model, tokens, watch=watch, exact=exact))
            self.scaled = self.d / self.clean.scale[:, None]
        self.rounded = PlainPrompt(model, tokens, watch, exact=False) if exact and model.bfloat16 else None

    @property
    def both(self) -> "list[PlainPrompt]":
        """This, and the one that is rounded, where there is one."""
        return [self] if self.rounded is None else [self, self.rounded]

    def head_effects(self, run: PlainRun, layer: int) -> Float[Tensor, "pos head"]:
        """Direct effects of a layer's heads in a run of the prompt, logits, by the clean scale."""
        model = self.model
        with torch.inference_mode():
            z, along = run.z[layer][:-1] - model.value_constant[layer], self.seen_by("attention", layer)
            return torch.linalg.vecdot(z, torch.einsum("pm,hdm->phd", along, model.W_O[layer]))

    def expert_effects(self, layer: int, expert: int, run: Routed, rows: Tensor) -> Float[Tensor, " row"]:
        """Direct effects of one expert at some predicting positions that chose it in a run, logits, by clean scales."""
        experts = self.model.experts[layer]
        assert experts is not None
        hidden = run.hidden[:-1][rows]
        weight = torch.where(run.chosen == expert, run.weights, 0).sum(-1)[:-1][rows]
        chosen = torch.full_like(run.chosen[: len(hidden), :1], expert)
        given = experts.factor * experts.module(hidden, chosen, weight[:, None])
        return (given.to(self.model.dtype) * self.seen_by("mlp", layer)[rows]).sum(-1)

    def seen_by(self, component: str, layer: int) -> Float[Tensor, "pos d_model"]:
        """What gives the direct effect of an output of a layer's component at predicting positions, by clean scales."""
        scales = self.clean.postnorms
        return self.model.written(self.scaled, component, layer, scales[component][layer] if scales else None)

    def ablated(
        self,
        edits: Edits,
        layer: int,
        head: int | None,
        component: str = "attention",
        watch: Sequence[nn.Module] = (),
    ) -> Effects:
        """Ablate something, and compare with the clean run.

        Args:
            edits: What is put in.
            layer: Its layer.
            head: The ablated head; None for all of the layer's ``component``.
            component: "attention" or "mlp".
            watch: Modules whose inputs are kept besides.
        """
        run = plain_run(self.model, self.tokens, [edits(self.exact)], watch, exact=self.exact)
        clean, ablated = self.clean, Seen(self, run)
        with torch.inference_mode():
            by_head, by_mlp = ablated.heads - clean.heads, ablated.mlps - clean.mlps
            own = [_own(side, layer, head, component) for side in (clean, ablated)]
            if component == "mlp":
                by_mlp[layer] = 0
            else:
                by_head[layer, :, slice(None) if head is None else head] = 0
            change = ablated.logit - clean.logit
            along = (ablated.final * self.d).sum(-1)
            values = {
                "direct_effect": own[0],
                "ablated_direct_effect": own[1],
                "logit_change": change,
                "self_repair": change - (own[1] - own[0]),
                "self_repair_from_heads": by_head.sum((0, 2)),
                "self_repair_from_mlps": by_mlp.sum(0),
                "self_repair_from_layernorm": along * (1 / ablated.scale - 1 / clean.scale),
                "ablated_scale": ablated.scale,
            }
            if ablated.by_postnorm:
                values[POSTNORMS] = torch.cat(list(ablated.by_postnorm.values())).sum(0)
                values[OWN_POSTNORM] = ablated.by_postnorm[component][layer]
            if self.model.most_chosen:
                values[CHOSEN_EXPERTS] = ablated.by_choice.sum(0)
            if self.model.logit_cap is not None:
                values[CAPPED] = ablated.capped_logit - clean.capped_logit
            longest = torch.stack([*(each[:-1] for each in ablated.run.resid), ablated.final]).norm(dim=-1).amax(0)
            along = self.scaled.norm(dim=-1) + self.model.offset_length / clean.scale
            sizes = clean.sizes + ablated.sizes + clean.logit.abs() + ablated.logit.abs()
            sizes += ablated.by_choice.abs().sum(0)
        rounded = None if self.rounded is None else self.rounded.ablated(edits, layer, head, component, watch)
        return Effects(values, by_head, by_mlp, sizes + longest * along, ablated, rounded)


def _own(side: Seen, layer: int, head: int | None, component: str) -> Tensor:
    """Direct effect of what was ablated [pos-1]."""
    if component == "mlp":
        return side.mlps[layer]
    return side.heads[layer].sum(-1) if head is None else side.heads[layer, :, head]


def layers_run(model: Model, heads: Heads) -> np.ndarray:
    """Layers that run again for each head's ablation [head]."""
    return np.array([model.n_layers - layer for layer, _ in heads])


@dataclass
class Proof:
    """What was repeated of a job, and how far the two were apart.

    Args:
        model: The model.
        what: What the job measures, for errors and the log.
        seed: Of what is repeated.

    Attributes:
        ablations: How many (ablation, prompt) pairs were repeated.
        numbers: How many numbers were compared.
        largest: Their largest difference, in logits.
        noise: Of a bfloat16 model, by quantity, what the job's values are off by from those of the same weights in float32: how
            many were compared, the sum of the differences, and that of their squares.
    """

    model: Model
    what: str
    seed: int
    ablations: int = 0
    numbers: int = 0
    largest: float = 0.0
    noise: dict[str, np.ndarray] = field(default_factory=dict)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Seed the choice."""
        self.rng = np.random.default_rng(self.seed)

    def draw(self, wanted: np.ndarray, n_layers_run: np.ndarray) -> list[tuple[int, list[int]]]:
        """Draw what is repeated: some prompts, and some ablations on each, within `SHARE` of the job's operations.

        Args:
            wanted: Whether an ablation has anything measured on a prompt [ablation, prompt].
            n_layers_run: Layers that the job runs for each ablation [ablation].

        Returns:
            Prompts, each with its ablations, spread over their order.
        """
        runs = (wanted.sum(1) * n_layers_run).sum() / self.model.n_layers * SHARE
        runs = runs / 2 if self.model.bfloat16 else runs  # each is made twice
        # A prompt costs a clean run, a donor's, and one an ablation.
        a_prompt = int(np.clip(runs - 2, 1, HEADS_A_PROMPT))
        prompts = np.flatnonzero(wanted.any(0))
        count = int(np.clip(runs // (2 + a_prompt), 1, len(prompts))) if len(prompts) else 0
        drawn = []
        for prompt in sorted(self.rng.choice(prompts, count, replace=False).tolist()):
            parts = np.array_split(np.flatnonzero(wanted[:, prompt]), a_prompt)
            drawn.append((prompt, [int(self.rng.choice(part)) for part in parts if len(part)]))
        return drawn

    def compare(
        self,
        name: str,
        found: Any,
        wanted: Tensor,
        summed: Tensor,
        rounded: Tensor | None = None,
        *,
        unit: str = "logits",
    ) -> None:
        """Hold numbers of the job against those of plain runs.

        Args:
            name: What they are, for the error.
            found: The job's; NaN where it measured nothing.
            wanted: The plain runs', of the same shape.
            summed: Sizes of the terms that are summed in each, of a shape that broadcasts.
            rounded: Of a bfloat16 model, those of plain runs that round as it does. How far layers carry the rounding of those
                before them is the model's and the prompt's: this says it, where no constant does.
            unit: What they are in; `largest` is of those in logits.

        Raises:
            ValueError: A difference beyond rounding.
        """
        got = torch.as_tensor(np.asarray(found)).to(wanted)
        measured = ~got.isnan()
        off = (got - wanted).abs()[measured]
        allowed = (rounding(REPEATED_ROUNDINGS, self.model.dtype) * summed).expand(wanted.shape)[measured]
        if rounded is not None and rounded.numel():
            allowed = allowed + BFLOAT16_TIMES * (rounded - wanted).abs().max()
        self.numbers += int(measured.sum())
        if not len(off):
            return
        if not bool((off <= allowed).all()):
            worst = int((off - allowed).nan_to_num(nan=torch.inf).argmax())
            by, explained = f"{float(off[worst]):.3g} {unit}".strip(), f"{float(allowed[worst]):.1g}"
            raise ValueError(
                f"{self.what} of {self.model.name} are not what the whole model gives with plain hooks: {name} off by {by} "
                f"where rounding explains {explained}. Nothing was written: this model runs otherwise in parts than as a "
                "whole; please report it with its config.json"
            )
        if unit == "logits":
            self.largest = max(self.largest, float(off.max()))

    def within(self, drawn: Sequence[tuple[int, list[int]]], chunk: slice) -> list[tuple[int, list[int]]]:
        """Those of the drawn prompts that lie in a chunk, counted from its first."""
        return [(prompt - chunk.start, rows) for prompt, rows in drawn if chunk.start <= prompt < chunk.stop]

    def attrs(self) -> dict[str, Any]:
        """What a result file records of the proof."""
        logger.info(
            "checked: %d ablations by plain runs of the whole model, %d numbers, largest difference %.1g logits",
            self.ablations,
            self.numbers,
            self.largest,
        )
        return {
            "proof_ablations": self.ablations,
            "proof_numbers": self.numbers,
            "proof_largest_difference": self.largest,
            **{f"{NOISE_OF}{name}": noise for name, noise in self.noise.items()},
        }

    def hear(self, name: str, found: Any, wanted: Tensor) -> None:
        """Add to the `noise` of a quantity, if the model is bfloat16: plain runs of such a model compute in float32."""
        if self.model.bfloat16:
            off = (torch.as_tensor(np.asarray(found)).to(wanted) - wanted).double()
            off = off[~off.isnan()]
            heard = np.array([len(off), float(off.sum()), float((off**2).sum())])
            self.noise[name] = self.noise.get(name, 0) + heard


PlainReplacement = Callable[[int], Tensor]
"""What takes the place of ``z`` of a layer in one prompt [pos, head, d_head]; one position broadcasts."""
PlainReplacements = Callable[[int, int, bool], PlainReplacement]
"""The same for each prompt, up to a layer, in float32 (true) or as the model rounds."""


def plain_replacement(
    model: Model, donors: Sequence[Int[Tensor, " pos"]], until: int, exact: bool = True
) -> PlainReplacement:
    """What takes the place of ``z`` in one prompt: its donors' own, averaged, from their token ids, up to a layer."""
    runs = [plain_run(model, tokens, until=until, exact=exact) for tokens in donors]
    return lambda layer: torch.stack([run.z[layer] for run in runs]).mean(0)


@dataclass(frozen=True)
class Repeated:
    """A head's ablation on one prompt, repeated.

    Attributes:
        row: Of the head among the job's.
        prompt: Among those given.
        head: The (layer, head) pair.
        of: The prompt, with its clean run.
        effects: What the ablation gives.
    """

    row: int
    prompt: int
    head: tuple[int, int]
    of: PlainPrompt
    effects: Effects

    @property
    def where(self) -> str:
        """For errors."""
        return "of head (layer {}, head {})".format(*self.head)


def repeat_heads(
    proof: Proof,
    drawn: Sequence[tuple[int, list[int]]],
    heads: Sequence[tuple[int, int]],
    tokens: Int[Tensor, "prompt pos"],
    replacement: PlainReplacements,
    watch: Sequence[nn.Module] = (),
) -> Iterator[Repeated]:
    """Repeat ablations of heads, and count them.

    Args:
        proof: Where they are counted.
        drawn: Prompts, each with rows of ``heads``.
        heads: The job's (layer, head) pairs.
        tokens: Token ids of the job's prompts.
        replacement: What takes the place of ``z``, from token ids.
        watch: Modules whose inputs are kept besides.
    """
    model = proof.model
    for prompt, rows in drawn:
        of_prompt = PlainPrompt(model, tokens[prompt], watch)
        until = max(heads[row][0] for row in rows)
        z = {exact: replacement(prompt, until, exact) for exact in ([True, False] if model.bfloat16 else [True])}
        for row in rows:
            layer, head = heads[row]

            def edits(exact: bool, z: Any = z, layer: int = layer, head: int = head) -> Edit:
                return replaced_z(model, layer, head, z[exact](layer)[:, head])

            effects = of_prompt.ablated(edits, layer, head, watch=watch)
            proof.ablations += 1
            yield Repeated(row, prompt, (layer, head), of_prompt, effects)


def prove_heads(proof: Proof, repeated: Iterable[Repeated], found: Mapping[str, Any]) -> None:
    """Hold everything that a sweep gives against its repeated ablations.

    Args:
        proof: Where it is counted.
        repeated: From `repeat_heads`.
        found: The sweep's arrays [head, prompt, ...], by name.

    Raises:
        ValueError: A difference beyond rounding.
    """
    for each in repeated:
        at = each.row, each.prompt
        values = {name: np.asarray(found[name])[at] for name in proof.model.quantities}
        prove_values(proof, each.where, each.effects, values)
        if "ablated_scale" in found:
            scale, *rounded = (effects.values["ablated_scale"] for effects in each.effects.both)
            got = np.asarray(found["ablated_scale"])[at]
            proof.compare(f"ablated_scale {each.where}", got, scale, scale, *rounded, unit="")
        if "repair_by_head" in found:
            _prove_sums(proof, each, found)


def prove_values(proof: Proof, where: str, plain: Effects, found: Mapping[str, Any]) -> None:
    """Hold the quantities of one ablation on one prompt [pos-1] against those of plain runs."""
    for name in found:
        wanted, *rounded = (effects.values[name] for effects in plain.both)
        proof.compare(f"{name} {where}", found[name], wanted, plain.summed, *rounded)
        proof.hear(name, found[name], wanted)


def _prove_sums(proof: Proof, repeated: Repeated, found: Mapping[str, Any]) -> None:
    """The same for who repairs, summed over the head's top tokens."""
    plain, at = repeated.effects, (repeated.row, repeated.prompt)
    selected = torch.as_tensor(np.asarray(found["selected"])[at]).to(plain.summed.device)
    summed = plain.summed[selected].sum() + torch.finfo(torch.float32).tiny
    for name, of in (("repair_by_head", "by_head"), ("repair_by_mlp", "by_mlp")):
        wanted, *rounded = (getattr(each, of)[:, selected].sum(1) for each in plain.both)
        proof.compare(f"{name} {repeated.where}", np.asarray(found[name])[at], wanted, summed, *rounded)
