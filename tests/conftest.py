"""Fixtures that more than one test uses. Shapes written in signatures are checked while tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("selfrepair", "beartype.beartype")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

REPOSITORY = Path(__file__).parent.parent
ORACLE = Path(__file__).parent / "data" / "oracle"

VOCAB = 101
_SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "gpt2": GPT2Config(
        n_layer=3,
        n_head=4,
        n_embd=32,
        vocab_size=VOCAB,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
    ),
    "gpt_neox": GPTNeoXConfig(**_SIZES, rotary_pct=0.25),
    "gpt_neox_sequential": GPTNeoXConfig(**_SIZES, rotary_pct=0.25, use_parallel_residual=False),
    "llama": LlamaConfig(**_SIZES, num_key_value_heads=2),
    "mistral": MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=6),
    "qwen2": Qwen2Config(**_SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=16),
    "gemma": GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=16),
    "gemma2": Gemma2Config(**_SIZES, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0),
    "gemma3_text": Gemma3TextConfig(**_SIZES, num_key_value_heads=1, head_dim=16, sliding_window=6),
    "olmo": OlmoConfig(**_SIZES, num_key_value_heads=4),
    "smollm3": SmolLM3Config(**_SIZES, num_key_value_heads=2),
    "stablelm": StableLmConfig(**_SIZES, num_key_value_heads=2, use_qkv_bias=True),
    "stablelm_parallel": StableLmConfig(**_SIZES, num_key_value_heads=2, use_parallel_residual=True),
    "phi": PhiConfig(**_SIZES, partial_rotary_factor=0.5),
    "opt": OPTConfig(
        **{key: value for key, value in _SIZES.items() if key != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
}
"""Architectures of every kind, small, and both layouts of those that have two."""

ONLY_EAGER = ("gemma2",)
"""Those of them for which torch's own attention does not do."""


def random_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A small random model with random biases and norm weights, so that nothing is zero or one by default."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        CONFIGS[name], dtype=dtype, attn_implementation="eager" if name in ONLY_EAGER else "sdpa"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + float(parameter.mean().round()))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model.eval()


def in_bfloat16(hf: PreTrainedModel) -> PreTrainedModel:
    """A model whose matrices are bfloat16."""
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.bfloat16()
    return hf


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def tokens(rng: np.random.Generator) -> np.ndarray:
    """Six prompts of ten tokens with one first token, as with BOS."""
    ids = rng.integers(3, VOCAB, size=(6, 10))
    ids[:, 0] = 1
    return ids


@pytest.fixture
def donors(tokens: np.ndarray) -> np.ndarray:
    return np.roll(tokens, 1, axis=0)


@pytest.fixture
def less_room_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what the identity is allowed, an eighth of what a proof is: what is sound needs no more."""
    from selfrepair.engine import rounding

    monkeypatch.setattr(rounding, "IDENTITY_ROUNDINGS", rounding.IDENTITY_ROUNDINGS / 2)
    monkeypatch.setattr(rounding, "REPEATED_ROUNDINGS", rounding.REPEATED_ROUNDINGS / 8)


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """What many tests read, made by the first of pytest's processes that wants it: a name and what fills its folder."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each process has a folder of its own below that of the test run
    if "MADE_ONCE" in os.environ:
        base = Path(os.environ["MADE_ONCE"])  # several test runs of the same code (.ci/run)

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                assert not folder.exists(), f"{name} could not be made: see the first test that wanted it"
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def smollm2(make_once: MakeOnce) -> Path:
    """The real model of the default config: its snapshot, taken from the package once a test run."""
    import yaml

    from selfrepair.snapshots.models import snapshot_model

    config = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    settings = config["models"]["smollm2-135m-instruct"]
    source = {
        name: value for name, value in settings.items() if name != "shape"
    }  # for plans, before there is a snapshot
    return make_once("smollm2", lambda folder: snapshot_model(folder / "manifest.json", **source))


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory: pytest.TempPathFactory):
    """Measured files and head tables of a planted model (`planted.layernorm_run`), which tests read and leave as they are."""
    from planted.layernorm_run import make_planted_run

    return make_planted_run(tmp_path_factory.mktemp("planted"))
