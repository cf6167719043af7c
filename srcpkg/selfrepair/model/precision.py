"""A float64 model that is one throughout: what its code computes in float32 whatever its input is computed in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Within the block, float64 takes the place of float32 wherever torch is asked for it by name.

    Norms, rotary tables and the softmax of eager attention are written so in transformers, for models in half precision.
    """

    def __enter__(self) -> "Float64":
        """Numbers without a type are float64 too."""
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Put the default back."""
        torch.set_default_dtype(self._default)
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)
