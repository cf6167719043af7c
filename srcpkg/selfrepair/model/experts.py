"""The routed experts of a mixture, which run on the tokens that choose them, and what each gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Routed:
    """What a mixture's experts are called with in a run.

    Attributes:
        hidden: What they read [token, d_model]; prompts one after the other, or the tokens that are wanted alone.
        chosen: The experts that each token chooses [token, slot].
        weights: What their outputs are multiplied by [token, slot].
    """

    hidden: Float[Tensor, "token d_model"]
    chosen: Int[Tensor, "token slot"]
    weights: Float[Tensor, "token slot"]

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> "Routed | None":
        """The arguments of a call, if it is one of experts."""
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if len(args) != 3 or len(tensors) != 3 or any(arg.ndim != 2 for arg in tensors):
            return None
        hidden, chosen, weights = tensors
        whole = not chosen.is_floating_point() and chosen.dtype != torch.bool
        fits = chosen.shape == weights.shape and len(chosen) == len(hidden)
        return cls(*args) if whole and fits and weights.is_floating_point() else None


@dataclass(eq=False)
class Experts:
    """The experts of one layer's MLP, whose output is the sum of what each chosen expert gives.

    Attributes:
        module: What is called with the three of `Routed`.
        slots: How many experts a token chooses.
        factor: What the MLP multiplies their output by.
    """

    module: nn.Module
    slots: int
    factor: float
    _asked: bool = field(init=False, default=False)

    def given(self, routed: Routed, token: Int[Tensor, " pair"], slot: Int[Tensor, " pair"]) -> Tensor:
        """What an expert gives to the MLP's output for a token, for some (token, slot) pairs [pair, d_model].

        Each pair is a token with one expert, so that no other expert runs.
        """
        pairs = routed.hidden[token], routed.chosen[token, slot, None], routed.weights[token, slot, None]
        if not len(token):
            return torch.zeros_like(pairs[0])
        self._asked = True
        try:
            out = self.module(*pairs)
        finally:
            self._asked = False
        return out if self.factor == 1 else self.factor * out

    def watch(self, see: Callable[[Routed], None]) -> Any:
        """Register a hook that sees every call of the model's own, and return its handle."""

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._asked:
                routed = Routed.of(args)
                assert routed is not None
                see(routed)

        return self.module.register_forward_pre_hook(hook)
