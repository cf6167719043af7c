"""One layer's attention run again on other residuals: all that analyses of a single head's own response need.

An attention module is called with the arguments that it got in the model's own run, so that no architecture is special here.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.engine.clean import by_head, prompt_chunks
from selfrepair.model.calls import MASK, Call, hooked
from selfrepair.model.model import Model

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

    def z(self, layer: int, resid: Float[Tensor, "prompt pos d_model"]) -> Float[Tensor, "prompt pos head d_head"]:
        """``z`` of a layer whose attention reads ``resid`` instead of its own residual."""
        parts = [
            self._run(layer, self.calls[layer], resid[chunk])
            for chunk in prompt_chunks(self.model, resid.shape[0], self.length)
        ]
        return torch.cat(parts)

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
        """
        rows = []
        for first in range(0, len(positions), CHANGES_AT_ONCE):
            some = slice(first, first + CHANGES_AT_ONCE)
            place = torch.cat([torch.arange(self.length, device=resid.device), positions[some]])
            call = self._with_tokens(layer, place)
            z = self._run(layer, call, torch.cat([resid, changed[some]])[None])
            rows.append(z[0, self.length :])
        return torch.cat(rows) if rows else resid.new_zeros(0, self.model.n_heads, self.model.d_head)

    def _run(self, layer: int, call: Call, resid: Tensor) -> Tensor:
        captured: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            captured.append(by_head(self.model, args[0]).to(self.model.dtype))

        with (
            hooked(lambda: [self.model.attention_out(layer).register_forward_pre_hook(keep)]),
            torch.inference_mode(),
            self.model.running(),
        ):
            call.replay(self.model.attention(layer), self.model.attention_norm(layer)(resid))
        return captured[0]

    def _with_tokens(self, layer: int, place: Tensor) -> Call:
        """The layer's call for a sequence with more tokens: ``place`` of each token, the prompt's own ones first."""
        call = self.calls[layer].at(place)
        kwargs = {**call.kwargs, MASK: self._mask(self.calls[layer].kwargs.get(MASK), place)}
        return Call(call.args, kwargs)

    def _mask(self, mask: Tensor | None, place: Tensor) -> Tensor:
        """What each token attends to, as numbers to add to scores: the clean tokens before it as ever, and itself."""
        length, total = self.length, len(place)
        if mask is None:
            seen = torch.ones(length, length, dtype=torch.bool, device=place.device).tril()
        else:
            seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
        allowed = torch.zeros(total, total, dtype=torch.bool, device=place.device)
        allowed[:, :length] = seen[place]
        # A changed token takes the place of a clean one.
        added = torch.arange(length, total, device=place.device)
        allowed[added, place[length:]] = False
        allowed[added, added] = True
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(1, 1, total, total, dtype=self.model.dtype, device=place.device).masked_fill_(
            ~allowed, lowest
        )
