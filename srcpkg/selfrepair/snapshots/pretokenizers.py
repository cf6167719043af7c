"""How texts are cut before byte-level BPE, by the names that GGUF files and slow tokenizer classes give.

Facts are from llama.cpp (`src/llama-vocab.cpp`, names and patterns; `convert_hf_to_gguf_update.py`, the model that each name
was made from) and from the named models' own tokenizer.json or tokenizer code. llama.cpp leaves normalizers out; here they are
the models' own. A name that is not here is refused: it may be cut in another way.
"""

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a family of byte-level BPE tokenizers treats a text before merges are looked up.

    Attributes:
        pattern: What is cut off, as one expression; None means GPT-2's, which the tokenizers library holds itself.
        digits: Digits are cut off one by one before that.
        nfc: The text is brought to Unicode's form NFC first.
        ignore_merges: A piece that the vocabulary holds whole is that token, whatever its merges give.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False


_GPT2 = PreTokenizer()
_SINGLE_DIGITS = PreTokenizer(digits=True)
PRE_TOKENIZERS = {
    # openai-community/gpt2 (src/encoder.py of GPT-2); microsoft/phi-2 (CodeGen's, which are GPT-2's).
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    # HuggingFaceTB/SmolLM-135M, bigcode/starcoder2-3b, smallcloudai/Refact-1_6-base: tokenizer.json has Digits, ByteLevel.
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    # CohereForAI/c4ai-command-r-v01 (CohereTokenizer of transformers).
    "command-r": PreTokenizer(digits=True, nfc=True),
    # allenai/OLMo-1.7-7B-hf and mosaicml/mpt-7b have EleutherAI/gpt-neox-20b's (GPTNeoXTokenizer of transformers).
    "olmo": PreTokenizer(nfc=True),
    "mpt": PreTokenizer(nfc=True),
    # meta-llama/Meta-Llama-3-8B; abacusai/Smaug-Llama-3-70B-Instruct is trained on from it.
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), PreTokenizer(_LLAMA3, ignore_merges=True)),
    # Qwen/Qwen1.5-7B and later (Qwen2Tokenizer of transformers).
    "qwen2": PreTokenizer(_QWEN2, nfc=True),
    # stabilityai/stablelm-2-zephyr-1_6b (tokenization_arcade100k.py there).
    "stablelm2": PreTokenizer(_QWEN2, nfc=True),
    # mistralai/Mistral-Nemo-Base-2407 (tekken.json; MistralConverter of transformers).
    "tekken": PreTokenizer(_TEKKEN, ignore_merges=True),
}
"""By the value of `tokenizer.ggml.pre`."""


def byte_level_bpe(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    name: str,
    add_prefix_space: bool = False,
) -> Tokenizer:
    """A byte-level BPE tokenizer.

    Args:
        vocabulary: Ids of tokens, spelled in the symbols of bytes.
        merges: Pairs, the earliest first.
        name: One of `PRE_TOKENIZERS`.
        add_prefix_space: A blank is put before each text.
    """
    pre = PRE_TOKENIZERS[name]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pre.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
