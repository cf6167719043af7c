"""A model with an erasure neuron planted: weights set by hand, so that every result is known.

The residual has a large constant, which every norm divides by: what stands in it otherwise passes through unchanged, up to
`ROUNDING`. One head of the first layer writes the mean of a signal over the tokens so far. In the last MLP one neuron writes
against the sum of that and a constant, another one does less of it, a third writes in its favour, and the rest do nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, WIDTH, N_NEURONS = 12, 16, 24
HEAD = (0, 1)
ERASURE, LESSER, AMPLIFIER = 17, 3, 8
GAINS = {ERASURE: -0.6, LESSER: -0.12, AMPLIFIER: 0.18}
"""What each of the three neurons writes, as a multiple of what it reads."""
CONSTANT = 0.4
"""What the neurons read beside the head's write, in every run."""
BIAS, SIGNAL, OUTPUT = 0, 1, 2
"""Dimensions of the residual: the large constant, the tokens' signal, and what head and neurons write to."""
LARGE = 1e4
ROUNDING = 1e-6


@dataclass(frozen=True)
class Planted:
    """The model and what it must give.

    Attributes:
        hf: The model, float64.
        signal: What each token adds to the head's write [vocab].
        output: Centred logit of each token for a unit written [vocab].
    """

    hf: LlamaForCausalLM
    signal: np.ndarray
    output: np.ndarray

    def head_write(self, tokens: np.ndarray) -> np.ndarray:
        """What the head writes at the predicting positions: the mean signal of the tokens so far [prompt, pos-1]."""
        sums = self.signal[tokens].cumsum(1)
        return (sums / np.arange(1, tokens.shape[1] + 1))[:, :-1]

    def neuron_effect(self, neuron: int, write: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Direct effect of a neuron where the head writes ``write`` [prompt, pos-1]."""
        return GAINS[neuron] * (write + CONSTANT) * self.output[tokens[:, 1:]]


def planted_neuron() -> Planted:
    """The model, with tokens of small and of large signal: 0 to 5 and 6 to 11."""
    signal = np.r_[np.linspace(0.01, 0.03, 6), np.linspace(1.0, 2.0, 6)]
    unembedding = np.linspace(-1.0, 2.0, VOCAB)[np.random.default_rng(0).permutation(VOCAB)]
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=N_NEURONS,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    hf = LlamaForCausalLM._from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()
    scale = LARGE / WIDTH**0.5  # of every norm
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        first, last = hf.model.layers
        embedding = hf.model.embed_tokens.weight
        embedding[:, BIAS], embedding[:, OUTPUT] = LARGE, CONSTANT
        embedding[:, SIGNAL] = torch.from_numpy(signal)
        # No query, no key: attention is even. The head's first dimension carries the signal.
        at = HEAD[1] * (WIDTH // 2)
        first.self_attn.v_proj.weight[at, SIGNAL] = scale
        first.self_attn.o_proj.weight[OUTPUT, at] = 1.0
        _plant_neurons(last.mlp, scale)
        hf.lm_head.weight[:, OUTPUT] = torch.from_numpy(unembedding) * scale
    return Planted(hf, signal, unembedding - unembedding.mean())


def _plant_neurons(mlp: torch.nn.Module, scale: float) -> None:
    """Neurons that give what stands in the output dimension: their gates are held open by the constant."""
    gate = 1.0
    open_gate = float(torch.nn.functional.silu(torch.tensor(gate * WIDTH**0.5, dtype=torch.float64)))
    for neuron, gain in GAINS.items():
        mlp.gate_proj.weight[neuron, BIAS] = gate
        mlp.up_proj.weight[neuron, OUTPUT] = scale / open_gate
        mlp.down_proj.weight[OUTPUT, neuron] = gain
