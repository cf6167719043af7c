"""Activations of a run under TransformerLens's names of hooks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from selfrepair.run.opened import Run

_HOOKS = {"hook_resid_pre": "resid_pre", "attn.hook_z": "z"}
"""The rest of a hook's name after ``blocks.LAYER.``, and the variable that holds what it sees."""
_AFTER = "hook_resid_post"
"""What leaves a layer enters the next."""


class CachedRun(Mapping[str, Float[Tensor, "prompt pos ..."]]):
    """Activations of the clean run by hook, each read where it is used. Made by `Run.cache`.

    Keys are ``blocks.LAYER.hook_resid_pre`` [prompt, pos, d_model], ``blocks.LAYER.hook_resid_post`` (but of the last layer)
    and ``blocks.LAYER.attn.hook_z`` [prompt, pos, head, d_head], of the model as it is: nothing is folded or centred.
    TransformerLens's short names work too: ``cache["z", 3]``, ``cache["resid_pre", -1]``.

    Attributes:
        prompts: The run's prompts that it holds.
    """

    def __init__(self, activations: xr.Dataset, prompts: np.ndarray) -> None:
        self.prompts = prompts
        self._activations = activations
        self._n_layers = int(activations.sizes["layer"])

    def __iter__(self) -> Iterator[str]:
        """Names of hooks, layer by layer."""
        for layer in range(self._n_layers):
            yield from (f"blocks.{layer}.{hook}" for hook in _HOOKS)
            if layer + 1 < self._n_layers:
                yield f"blocks.{layer}.{_AFTER}"

    def __len__(self) -> int:
        """How many hooks are cached."""
        return (len(_HOOKS) + 1) * self._n_layers - 1

    def __contains__(self, key: object) -> bool:
        """Whether a hook is cached, by its full name."""
        return key in set(self)

    def __getitem__(self, key: Any) -> Tensor:
        """What a hook sees, by its full or short name; a KeyError where it is not cached."""
        name = self._full_name(key)
        if name not in self:
            raise KeyError(
                f"{name!r} is not cached: the run keeps {', '.join(f'blocks.LAYER.{hook}' for hook in _HOOKS)}"
            )
        _, layer, hook = name.split(".", 2)
        at, variable = (int(layer) + 1, "resid_pre") if hook == _AFTER else (int(layer), _HOOKS[hook])
        return torch.from_numpy(self._activations[variable].isel(layer=at, prompt=self.prompts).values)

    def _full_name(self, key: Any) -> str:
        if isinstance(key, str) and key in self:
            return key
        from transformer_lens.utilities import get_act_name

        parts = (key,) if isinstance(key, str) else tuple(key)
        if len(parts) > 1 and isinstance(parts[1], int) and parts[1] < 0:
            parts = (parts[0], self._n_layers + parts[1], *parts[2:])
        return str(get_act_name(*parts))

    def to_transformer_lens(self, bridge: Any) -> Any:
        """All of it in memory, as an ActivationCache of TransformerLens.

        Args:
            bridge: The TransformerBridge of the model.
        """
        from transformer_lens import ActivationCache

        return ActivationCache(dict(self), bridge)


def cached_run(run: "Run", prompts: Sequence[int] | slice | int) -> CachedRun:
    """Activations of some prompts of a run (`Run.cache`)."""
    activations = run.measured("activations")
    n_prompts = activations.sizes["prompt"]
    try:
        rows = np.atleast_1d(np.arange(n_prompts)[prompts])
    except IndexError:
        raise ValueError(f"no prompts {prompts}: the run has prompts 0 to {n_prompts - 1}") from None
    if "z" not in activations:
        raise ValueError(
            f"{run.folder / 'activations'} is without residuals and z (cache.keep: false in the run's config): set it to true "
            "and run `snakemake`, or run the prompts through the model yourself (run.prompts)"
        )
    return CachedRun(activations, rows)
