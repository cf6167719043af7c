"""One layer's attention run again on other residuals: all that analyses of a single head's own response need.

An attention module is called with the arguments that it got in the model's own run, so that no architecture is special here.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.engine.clean import OfLayers, by_head, prompt_chunks
from selfrepair.model.calls import MASK, Call, hooked
from selfrepair.model.model import Model
from selfrepair.model.observed import CHECK_TOLERANCE

CHANGES_AT_ONCE = 1024
"""Changed positions in one call; memory is proportional to the square."""


class Attentions:
    """The attention modules of a model, to be run one at a time on prompts of one length.

    Args:
        model: The model.
        length: Tokens a prompt.
    """

    def __init__(self, model: Model, length: int) -> None:
        self.model, self.length = model, length
        self.calls = model.attention_calls(length)
        self._refused = dict[int, str | None]()

    def z(self, layer: int, resid: Float[Tensor, "prompt pos d_model"]) -> Float[Tensor, "prompt pos head d_head"]:
        """``z`` of a layer whose attention reads ``resid`` instead of its own residual."""
        parts = [
            self._run(layer, self.calls[layer], resid[chunk])
            for chunk in prompt_chunks(self.model, resid.shape[0], self.length)
        ]
        return torch.cat(parts)

    def why_not_at(self, resid: OfLayers) -> str | None:
        """Why `z_at` cannot be asked of some layer; None where it can of all.

        Args:
            resid: Per layer, residuals that enter it, of one prompt at least.
        """
        reasons = (self._why_not_at(layer, resid[layer][0]) for layer in range(self.model.n_layers))
        return next((reason for reason in reasons if reason is not None), None)

    def z_at(
        self,
        layer: int,
        resid: Float[Tensor, "pos d_model"],
        positions: Int[Tensor, " row"],
        changed: Float[Tensor, "row d_model"],
    ) -> Float[Tensor, "row head d_head"]:
        """``z`` at single positions of a prompt, each with the residual changed there and nowhere else.

        Every changed position is one more token of the sequence: it has the place of the position that it stands for, and sees
        the clean tokens before that and itself. So a prompt's own keys and values are computed once for many changes.

        Args:
            layer: The layer.
            resid: The clean residual that enters it.
            positions: Which position each row changes.
            changed: The residual there.

        Raises:
            ValueError: An attention that makes masks of its own, by where tokens lie in the sequence.
        """
        if (reason := self._why_not_at(layer, resid)) is not None:
            raise ValueError(f"{self.model.name}: {reason}")
        rows = []
        for first in range(0, len(positions), CHANGES_AT_ONCE):
            some = slice(first, first + CHANGES_AT_ONCE)
            place = torch.cat([torch.arange(self.length, device=resid.device), positions[some]])
            call = self._with_tokens(layer, place)
            z = self._run(layer, call, torch.cat([resid, changed[some]])[None])
            rows.append(z[0, self.length :])
        return torch.cat(rows) if rows else resid.new_zeros(0, self.model.n_heads, self.model.d_head)

    def _why_not_at(self, layer: int, resid: Tensor) -> str | None:
        """Whether a layer's attention takes a token that changes nothing, anywhere in the sequence, for what it stands for."""
        if layer in self._refused:
            return self._refused[layer]
        place = torch.arange(self.length + CHANGES_AT_ONCE, device=resid.device) % self.length
        # Not in bfloat16, where a kernel for masks rounds otherwise than one without.
        own = self._run(layer, self.calls[layer], resid[None], exact=True)[0][place]
        try:
            again = self._run(layer, self._with_tokens(layer, place), resid[place][None], exact=True)[0]
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, for one
                raise
            again = torch.full_like(own, torch.nan)
        same = bool(((again - own).abs() <= CHECK_TOLERANCE * own.abs().max()).all())
        masks = f"the attention of layer {layer} makes masks of its own (a window, a slope)"
        why = f"{masks}, so that single positions cannot be changed one at a time"
        return self._refused.setdefault(layer, None if same else why)

    def _run(self, layer: int, call: Call, resid: Tensor, exact: bool = False) -> Tensor:
        captured: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            captured.append(by_head(self.model, args[0]).to(self.model.dtype))

        with (
            hooked(lambda: [self.model.attention_out(layer).register_forward_pre_hook(keep)]),
            torch.inference_mode(),
            self.model.running(exact),
        ):
            call.replay(self.model.attention(layer), self.model.read_by_attention(layer, resid))
        return captured[0]

    def _with_tokens(self, layer: int, place: Tensor) -> Call:
        """The layer's call for a sequence with more tokens: ``place`` of each token, the prompt's own ones first."""
        call = self.calls[layer].at(place)
        kwargs = {**call.kwargs, MASK: self._mask(self.calls[layer].kwargs.get(MASK), place)}
        return Call(call.args, kwargs)

    def _mask(self, mask: Tensor | None, place: Tensor) -> Tensor:
        """What each token attends to, in the terms of the layer's own mask: the clean tokens before it as ever, and itself.

        A mask of numbers, which are added to scores, may hold more than what is seen (ALiBi's slopes).
        """
        lowest = torch.finfo(self.model.dtype).min
        if mask is None:
            after = torch.ones(self.length, self.length, dtype=torch.bool, device=place.device).triu(1)
            mask = torch.zeros(1, 1, *after.shape, dtype=self.model.dtype, device=place.device)
            mask.masked_fill_(after, lowest)
        # Some masks of truth values say what is seen, some what is not; every token sees itself.
        unseen = lowest if mask.dtype != torch.bool else not bool(mask[..., 0, 0].all())
        grown = mask[..., place, :][..., place]
        added = torch.arange(self.length, len(place), device=place.device)
        itself = grown[..., added, added]
        grown[..., self.length :] = unseen
        # A changed token takes the place of a clean one.
        grown[..., added, place[self.length :]] = unseen
        grown[..., added, added] = itself
        return grown
