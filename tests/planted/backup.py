"""Models with weights set by hand: a backup head that takes over, and heads that reinforce or repress themselves.

Both are GPT-2s whose MLPs and other heads write nothing at all, so that whatever is measured was planted.
"""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

D_HEAD, N_HEADS = 8, 4
D_MODEL = D_HEAD * N_HEADS

# --- a backup head ---------------------------------------------------------------------------------------------------

BOS, ASK, FILLER, PAD, *ANSWERS = range(10)
"""Tokens: ASK is followed by the answer that the prompt holds."""
PRIMARY, BACKUP = (0, 1), (1, 2)
"""The (layer, head) that copies the answer where it is asked for, and the one that does so where the first has not."""

_IDENTITY, _OUT, _IS_ANSWER, _IS_ASK, _DONE = 0, 10, 20, 21, 22
"""Places in the residual stream: input token, predicted token, flags; the primary head sets the last one."""


def backup_model() -> GPT2LMHeadModel:
    """Three layers; the primary head sets a flag where it copies, and the backup head copies where the flag is missing."""
    model = _silent(n_layer=3, vocab_size=10)
    with torch.no_grad():
        for token in range(10):
            model.transformer.wte.weight[token, _IDENTITY + token] = 1
        model.transformer.wte.weight[ANSWERS, _IS_ANSWER] = 1
        model.transformer.wte.weight[ASK, _IS_ASK] = 1
        model.lm_head.weight[range(10), range(_OUT, _OUT + 10)] = 1
        _copy_answers(model, *PRIMARY, done_in_query=0, done_in_output=2)
        # Where the flag is set, the answer's score is far below all others.
        _copy_answers(model, *BACKUP, done_in_query=-4, done_in_output=0)
    return model


def _copy_answers(
    model: GPT2LMHeadModel, layer: int, head: int, *, done_in_query: float, done_in_output: float
) -> None:
    """Let a head attend from ASK to the answer and write which it is."""
    query, key, value = (
        slice(part * D_MODEL + head * D_HEAD, part * D_MODEL + (head + 1) * D_HEAD) for part in range(3)
    )
    attention = model.transformer.h[layer].attn
    weight = attention.c_attn.weight
    weight[_IS_ASK, query.start] = 3
    weight[_DONE, query.start] = done_in_query
    weight[_IS_ANSWER, key.start] = 3
    for place, token in enumerate(ANSWERS):
        weight[_IDENTITY + token, value.start + place] = 0.25
        attention.c_proj.weight[head * D_HEAD + place, _OUT + token] = 1
    weight[_IS_ANSWER, value.start + len(ANSWERS)] = 0.25
    attention.c_proj.weight[head * D_HEAD + len(ANSWERS), _DONE] = done_in_output


def backup_prompts() -> tuple[np.ndarray, np.ndarray]:
    """A prompt an answer, [BOS, FILLER, answer, FILLER, ASK, answer], and donors of the same shape without an answer."""
    prompts = np.array([[BOS, FILLER, answer, FILLER, ASK, answer] for answer in ANSWERS])
    donors = prompts.copy()
    donors[:, 2] = PAD
    return prompts, donors


ASKED = 4
"""The position of ASK, which predicts the answer."""

# --- heads that read what they write ---------------------------------------------------------------------------------

REINFORCING, REPRESSING, INDIFFERENT = 0, 1, 2
"""Heads of layer 0: reads u and writes u; reads u and writes -u; reads a flag and writes w."""
GAIN = 0.5

_U = (0, 1)
"""u is one place less another, so that a LayerNorm's centring leaves it alone; so is w."""
_W = (2, 3)
_FLAG = (4, 5)


def reinforcing_model() -> GPT2LMHeadModel:
    """One layer whose heads attend evenly to all positions up to their own, with one direction read and one written each."""
    model = _silent(n_layer=1, vocab_size=6)
    with torch.no_grad():
        embed, unembed = model.transformer.wte.weight, model.lm_head.weight
        for token in range(6):
            embed[token, list(_FLAG)] = torch.tensor([2.0, -2.0], dtype=embed.dtype)
            embed[token, list(_U)] = torch.tensor([1.0, -1.0], dtype=embed.dtype) * (token - 2.5)
            embed[token, 8 + token] = 1
            unembed[token, list(_U)] = torch.tensor([1.0, -1.0], dtype=embed.dtype) * (token - 2.5)
            unembed[token, list(_W)] = torch.tensor([1.0, -1.0], dtype=embed.dtype) * (-1) ** token
        for head, read, write, sign in (
            (REINFORCING, _U, _U, 1),
            (REPRESSING, _U, _U, -1),
            (INDIFFERENT, _FLAG, _W, 1),
        ):
            attention = model.transformer.h[0].attn
            value = 2 * D_MODEL + head * D_HEAD
            attention.c_attn.weight[list(read), value] = torch.tensor([0.5, -0.5], dtype=embed.dtype)
            written = torch.tensor([1.0, -1.0], dtype=embed.dtype) * sign * GAIN
            attention.c_proj.weight[head * D_HEAD, list(write)] = written
    return model


def read(normed: np.ndarray, head: int) -> np.ndarray:
    """What a head of `reinforcing_model` reads in normed residuals [..., d_model]."""
    first, second = _FLAG if head == INDIFFERENT else _U
    return 0.5 * (normed[..., first] - normed[..., second])


# --- shared ----------------------------------------------------------------------------------------------------------


def _silent(**sizes: int) -> GPT2LMHeadModel:
    """A GPT-2 with every weight zero but those of its norms, which are one: its logits are all zero."""
    config = GPT2Config(
        n_embd=D_MODEL,
        n_head=N_HEADS,
        n_positions=16,
        tie_word_embeddings=False,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
        **sizes,
    )
    model = GPT2LMHeadModel(config).to(torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("ln_" in name and name.endswith("weight")))
    return model
