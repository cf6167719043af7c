"""A random Llama of two layers with a word-level tokenizer, saved as transformers saves models."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("<s>", "<unk>", "the", "a", "cat", "dog", "sat", "ran", ".")


SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def save_tiny_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, shard_size: str = "1GB", **sizes: int
) -> LlamaForCausalLM:
    """Save the model and its tokenizer in `folder`, and return the model; ``sizes`` go over those of `SIZES`."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, **sizes}, bos_token_id=0, eos_token_id=0)
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard_size)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    return model
