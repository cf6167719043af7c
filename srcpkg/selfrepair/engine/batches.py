"""Which ablated runs go through the layers together, and where each head and prompt lies in the grid that they make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

LENGTH_STEP = 8
"""Prompts that are cut are cut to a multiple of this many tokens."""


@dataclass(frozen=True)
class Batch:
    """Ablated runs that go through the layers together, as a grid [row, prompt, pos-1].

    Either a row a head, on all prompts; or one row of (head, prompt) pairs, each pair a "prompt", cut after some tokens.

    Attributes:
        rows: Of each run's head, its place in the list of heads asked for.
        heads: The heads' indices within their layer.
        prompts: The pairs' prompts; None for a row a head.
        cut: Predicting positions left out at the end of each prompt.
    """

    rows: list[int]
    heads: list[int]
    prompts: list[int] | None = None
    cut: int = 0

    def shape(self, n_prompts: int) -> tuple[int, int]:
        """Rows and prompts of the grid, for that many prompts in all."""
        return (len(self.heads), n_prompts) if self.prompts is None else (1, len(self.heads))

    def of_prompts(self, values: Tensor) -> Tensor:
        """Per-prompt values [prompt, pos-1, ...] as they meet the grid."""
        return values if self.prompts is None else values[self.prompts, : values.shape[1] - self.cut][None]

    def of_heads(self, values: Tensor) -> Tensor:
        """Per-head values [prompt, pos-1, head, ...] of the ablated heads [row, prompt, pos-1, ...]."""
        if self.prompts is None:
            return values[:, :, self.heads].movedim(2, 0)
        return values[self.prompts, :, self.heads][:, : values.shape[1] - self.cut][None]

    def of_selection(self, selected: Tensor) -> Tensor:
        """Selected tokens [head asked for, prompt, pos-1] on the grid [row, prompt, pos-1]."""
        if self.prompts is None:
            return selected[self.rows]
        return selected[self.rows, self.prompts, : selected.shape[2] - self.cut][None]

    def write(self, z: Tensor, W_O: Tensor) -> Tensor:
        """What the heads write [row, prompt, pos-1, d_model] for ``z`` [row, prompt, pos-1, d_head]."""
        return torch.einsum("rptd,rdm->rptm" if self.prompts is None else "rptd,pdm->rptm", z, W_O[self.heads])


def whole_batches(heads: Sequence[int], n_prompts: int, length: int, batch_tokens: int) -> Iterator[Batch]:
    """Batches of a row a head, on all prompts.

    Args:
        heads: Head indices within their layer.
        n_prompts: How many prompts there are.
        length: Predicting positions of each.
        batch_tokens: Tokens that go through the layers at a time; a batch holds one head at least.
    """
    at_once = max(1, batch_tokens // (n_prompts * length))
    for first in range(0, len(heads), at_once):
        rows = list(range(len(heads)))[first : first + at_once]
        yield Batch(rows, [heads[row] for row in rows])


def cut_batches(
    heads: Sequence[int], selected: Bool[Tensor, "row prompt predicted"], batch_tokens: int
) -> Iterator[Batch]:
    """Batches of (head, prompt) pairs of similar length, longest first; a pair is cut after its last selected token.

    Args:
        heads: Head indices within their layer.
        selected: The tokens wanted of each head; pairs without any are left out.
        batch_tokens: Tokens that go through the layers at a time; a batch holds one pair at least.
    """
    whole = selected.shape[-1]
    last = torch.where(selected, torch.arange(1, whole + 1), 0).amax(-1)  # 0 where nothing is selected
    row, prompt = torch.nonzero(last, as_tuple=True)
    needed = last[row, prompt].tolist()
    order = sorted(range(len(needed)), key=needed.__getitem__, reverse=True)
    while order:
        # Few lengths, so that the layers' arguments are recorded for few.
        length = min(whole, -(-needed[order[0]] // LENGTH_STEP) * LENGTH_STEP)
        at_once = max(1, batch_tokens // length)
        batch, order = order[:at_once], order[at_once:]
        rows = row[batch].tolist()
        yield Batch(rows, [heads[at] for at in rows], prompt[batch].tolist(), cut=whole - length)
