"""Where weights are, and of which type, while modules run: on a device that holds one module's at a time, or in float32."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfrepair.model.calls import hooked


class Weights(Sequence[Tensor]):
    """A weight of each layer, given on the device and in the type of what is measured, wherever the model keeps it.

    Args:
        kept: The model's own tensors.
        dtype: Of what is measured.
        device: Where it is measured.
    """

    def __init__(self, kept: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.kept, self._dtype, self._device = kept, dtype, device

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.kept)

    def __getitem__(self, layer: Any) -> Any:
        """A view of the model's own tensor where that has the type and the device already."""
        return self.kept[layer].to(self._device, self._dtype)


@contextmanager
def weights_as(modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within the block, each module's own parameters are on a device while it runs, and as they were before and after.

    Args:
        modules: What runs; modules without parameters of their own are left alone.
        device: Where.
        dtype: Of which type; None leaves it.
    """
    kept: dict[nn.Module, list[dict[str, Any]]] = {}

    def take(module: nn.Module, _: Any) -> None:
        kept.setdefault(module, []).append(dict(module._parameters))
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = weight.detach().to(device, dtype, non_blocking=True)  # type: ignore[assignment]

    def put_back(module: nn.Module, _: Any, __: Any) -> None:
        # In place: the module's mapping may be held elsewhere.
        module._parameters.update(kept[module].pop())

    def register() -> list[Any]:
        handles = []
        for module in modules:
            if any(weight is not None for weight in module._parameters.values()):
                handles.append(module.register_forward_pre_hook(take))
                # First of the hooks, so that blocks within each other undo in turn; and whatever the module raises.
                handles.append(module.register_forward_hook(put_back, prepend=True, always_call=True))
        return handles

    with hooked(register):
        yield


def keep_matrices_in_bfloat16(hf: nn.Module) -> None:
    """Let a model that was loaded in bfloat16 hold its vectors (norms, biases) in float32: they are few, and not multiplied."""
    for module in hf.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.ndim < 2:
                module._parameters[name] = nn.Parameter(weight.float(), requires_grad=False)


def place(hf: nn.Module, layers: Sequence[nn.Module], device: torch.device, offload: bool) -> None:
    """Move a model to a device; the parameters of its layers stay where they are if they are ``offload``-ed.

    Those are pinned, so that they are copied while the device computes.
    """
    if not offload:
        hf.to(device)
        return
    of_layers = {module for layer in layers for module in layer.modules()}
    for module in hf.modules():
        move = partial(Tensor.to, device=device)
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if module not in of_layers:
                module._parameters[name] = nn.Parameter(move(weight.detach()), requires_grad=False)
            elif device.type == "cuda":
                module._parameters[name] = nn.Parameter(weight.detach().pin_memory(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = move(buffer)
