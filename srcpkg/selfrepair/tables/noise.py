"""Noise of bfloat16 in means over tokens: what they are off by from those of the same weights in float32."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from selfrepair.quantities import NOISE_OF

STANDARD_ERRORS = 2
"""Of a mean's noise, that are added to its size."""


class Noise:
    """What shards recorded of the noise of each quantity (`selfrepair.engine.proof.Proof.noise`), together.

    It is measured on the ablations that are repeated by plain runs. Where a model computes in float32 or float64 there is none.
    """

    def __init__(self) -> None:
        self._heard: dict[str, Float[np.ndarray, "3"]] = {}

    def add(self, attrs: Mapping[Any, Any]) -> None:
        """Add a shard's, from its file's attributes."""
        for name, heard in attrs.items():
            if str(name).startswith(NOISE_OF):
                self._heard[str(name)] = self._heard.get(str(name), 0) + np.asarray(heard)

    def columns(self, n_tokens: Shaped[np.ndarray, " row"]) -> dict[str, Float[np.ndarray, " row"]]:
        """By ``noise_of_{quantity}``, what a mean over so many tokens may be off by, in the quantity's unit.

        That is the size of the mean difference of the tokens that were compared, and two standard errors: of theirs, and of as
        many tokens as the mean has. A mean nearer to zero than this is not told from zero, whatever its interval over prompts.
        """
        columns = {}
        for name, (count, total, squares) in self._heard.items():
            if count:
                spread = np.sqrt(squares / count) * np.sqrt(1 / count + 1 / np.maximum(n_tokens, 1))
                columns[name] = abs(total / count) + STANDARD_ERRORS * spread
        return columns
