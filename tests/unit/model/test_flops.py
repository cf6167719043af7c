"""The engine does the operations that the formula counts, and no others."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.replay import SuffixReplay
from selfrepair.model.flops import head_flops, layer_flops
from selfrepair.model.model import Model

from conftest import VOCAB, random_model

PROMPTS, LENGTH = 2, 16


def counted(model: Model, layer: int, heads: list[int]) -> int:
    """Operations that torch itself counts while heads of a layer are ablated."""
    tokens = torch.randint(VOCAB, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(0))
    clean = run_clean(model, tokens)
    replay = SuffixReplay(model, tokens, clean)
    donor_z = run_clean(model, tokens.flip(0)).z[layer]
    # The counter does not know the fused attention of CPUs; the plain one does the same products.
    model.layer_calls(LENGTH)  # recorded once a model, not once an ablation
    everything = torch.ones(len(heads), PROMPTS, LENGTH - 1, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for _ in replay.ablate(layer, heads, donor_z, everything):
            pass
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen3", "opt"])
def test_operations_of_an_ablation_equal_the_formula(name: str) -> None:
    model = selfrepair.load_model(random_model(name, torch.float32))
    for layer in range(model.n_layers):
        # The difference between two heads and one leaves out what the heads of a layer share.
        shared = 2 * counted(model, layer, [1]) - counted(model, layer, [1, 3])
        assert counted(model, layer, [1, 3]) - counted(model, layer, [1]) == PROMPTS * head_flops(model, layer, LENGTH)
        assert 0 <= shared <= PROMPTS * layer_flops(model, layer, LENGTH)
