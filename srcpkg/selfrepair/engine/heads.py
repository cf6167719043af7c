"""Lists of heads."""

from collections.abc import Iterable, Sequence

from selfrepair.model.model import Model

Heads = Sequence[tuple[int, int]]
"""(layer, head) pairs."""


def check_heads(model: Model, heads: Heads | None) -> list[tuple[int, int]]:
    """The heads to ablate, all of the model's for None.

    Raises:
        ValueError: A head that the model does not have, one named twice, or none.
    """
    if heads is None:
        return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    found = [(int(layer), int(head)) for layer, head in heads]
    if not found:
        raise ValueError("heads is empty: name at least one (layer, head), or None for all")
    for layer, head in found:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise ValueError(
                f"head (layer {layer}, head {head}) does not exist: {model.name} has layers 0 to {model.n_layers - 1} "
                f"and heads 0 to {model.n_heads - 1}"
            )
    if len(set(found)) < len(found):
        raise ValueError(f"a head is named twice in {found}: name each once")
    return found


def group_by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Heads (layer, head) as lists of heads by layer, layers ascending, heads in the order given."""
    grouped: dict[int, list[int]] = {}
    for layer, head in heads:
        grouped.setdefault(layer, []).append(head)
    return dict(sorted(grouped.items()))
