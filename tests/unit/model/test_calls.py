"""Modules called again: arguments of the whole prompt, cut along positions; and a model that is left as it was."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import selfrepair
from selfrepair.model.calls import Call, Recorder, forward_is, left_as_it_was

from conftest import CONFIGS, VOCAB, random_model


def longrope_model() -> PreTrainedModel:
    """Other frequencies where a prompt is longer than 8 tokens."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 8,
        "factor": 4.0,
    }
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=rope,
    )
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 1.5 * parameter.shape[-1] ** -0.5)
    return hf.eval()


@pytest.mark.parametrize("name", ["mistral", "llama", "gpt2"])
def test_arguments_are_those_of_the_whole_prompt(name: str) -> None:
    """A sliding window's mask, absent in a prompt as short as the window, is cut from the long prompt's."""
    model = selfrepair.load_model(random_model(name), dtype="float64")
    whole, part = model.layer_calls(12)[0], model.layer_calls(12, cut=5)[0]
    cut = [path for path, leaf in whole.leaves().items() if isinstance(leaf, torch.Tensor)]
    for path in cut:
        long, short = whole.leaves()[path], part.leaves()[path]
        index = tuple(slice(7) if size == 12 else slice(None) for size in long.shape)
        assert torch.equal(short, long[index])
    assert any("attention_mask" in path for path in cut) == (name == "mistral")


def test_recorded_arguments_hold_no_residuals_and_one_length() -> None:
    """Memory does not grow with the lengths met: top tokens alone meet one for every few positions."""
    model = selfrepair.load_model(random_model("llama", torch.float32))
    for length in range(9, 60):
        model.layer_calls(length, cut=3)
    held = {
        id(leaf): leaf.numel()
        for call in model.layer_calls(60)
        for leaf in call.leaves().values()
        if torch.is_tensor(leaf)
    }
    assert sum(held.values()) <= 60 * (2 * model.d_head + 2)


class Layer(nn.Module):
    def forward(self, hidden: torch.Tensor, extra: Any) -> torch.Tensor:
        return hidden


class Odd(nn.Module):
    """A model of one layer that is given an argument made from the token ids."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = Layer(), make

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(tokens[..., None].float(), self.make(tokens))


TEXTS = torch.stack([torch.arange(8), torch.arange(8).flip(0)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda tokens: tokens.float(), "depends on the text"),
        (lambda tokens: tokens.shape[1], "depends on the length"),
        (lambda tokens: torch.zeros(2 * tokens.shape[1]), "grows with the prompt"),
        (lambda tokens: torch.zeros(8) if tokens.shape[1] == 8 else None, "in some lengths"),
        (lambda tokens: object(), "depends on the text"),
    ],
)
def test_arguments_that_cannot_be_cut_are_refused(make: Callable[[torch.Tensor], Any], reason: str) -> None:
    model = Odd(make)
    with pytest.raises(ValueError, match=f"odd cannot be run again in parts: argument 1 .*{reason}"):
        Recorder([model.layer], model, TEXTS, "odd")


def test_arguments_by_position_and_others_are_told_apart_whatever_their_sizes() -> None:
    """Eight positions and eight channels: what grows with the prompt is found by comparing, not by its size."""
    model = Odd(
        lambda tokens: {"tables": (torch.arange(tokens.shape[1])[None, :, None].expand(1, -1, 8), torch.ones(8))}
    )
    recorder = Recorder([model.layer], model, TEXTS, "even")
    call = recorder.calls(8)[0].at(torch.tensor([3, 3, 0]))
    table, other = call.args[1]["tables"]
    assert table[0, :, 0].tolist() == [3, 3, 0]
    assert table.shape == (1, 3, 8)
    assert other.shape == (8,)


@pytest.mark.parametrize("length", [8, 9, 20])
def test_rotary_tables_that_depend_on_the_length(length: int) -> None:
    """Ablated runs are shorter than the prompt; what they give is the whole model's on either side of the boundary."""
    hf, rng = longrope_model(), np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, size=(3, length))
    dataset = selfrepair.ablate_heads(selfrepair.load_model(hf, dtype="float64"), tokens, kind="zero", heads=[(0, 1)])

    def silence(_, args):
        z = args[0].clone()
        z[..., 8:16] = 0
        return (z,)

    def logit() -> torch.Tensor:
        ids = torch.from_numpy(tokens)
        with torch.no_grad():
            logits = hf(ids, use_cache=False).logits
        return (logits - logits.mean(-1, keepdim=True))[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]

    clean = logit()
    handle = hf.model.layers[0].self_attn.o_proj.register_forward_pre_hook(silence)
    wanted = (logit() - clean).numpy()
    handle.remove()
    assert np.abs(dataset["logit_change"].values[0] - wanted).max() < 1e-5 < np.abs(wanted).max()


# --- left as it was --------------------------------------------------------------------------------------------------


def patched(hf: PreTrainedModel) -> None:
    """Forwards of a researcher's own on attentions and MLPs."""
    for layer in hf.model.layers:
        for module, factor in ((layer.self_attn, 0.5), (layer.mlp, 0.8)):
            own = module.forward
            module.forward = lambda hidden_states, *a, own=own, factor=factor, **k: own(factor * hidden_states, *a, **k)


def hooked_by_accelerate(hf: PreTrainedModel) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Scale(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            if args:
                return (0.5 * args[0], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": 0.5 * kwargs["hidden_states"]}

    for layer in hf.model.layers:
        add_hook_to_module(layer.self_attn, Scale())
        add_hook_to_module(layer.mlp, Scale())


def hooked_by_torch(hf: PreTrainedModel) -> None:
    for layer in hf.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: (0.5 * args[0],))
        layer.self_attn.register_forward_hook(lambda _, __, out: out)


def as_it_is(hf: PreTrainedModel) -> None:
    pass


CHANGES = [patched, hooked_by_accelerate, hooked_by_torch, as_it_is]


def state_of(hf: PreTrainedModel) -> list[Any]:
    """Everything that a module holds, by identity, and its numbers by value."""
    found: list[Any] = []
    for name, module in hf.named_modules():
        for key, value in sorted(module.__dict__.items()):
            inner = [(str(k), id(v)) for k, v in value.items()] if isinstance(value, dict) else None
            found.append((name, key, inner if inner is not None else id(value)))
        found += [(name, key, buffer.tolist()) for key, buffer in module.named_buffers(recurse=False)]
    return found


def logits_of(hf: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return hf(torch.from_numpy(tokens), use_cache=False).logits


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_in_memory_is_as_it_was(change: Callable[[PreTrainedModel], None], tokens: np.ndarray, donors) -> None:
    hf = random_model("llama")
    change(hf)
    before, state = logits_of(hf, tokens), state_of(hf)
    model = selfrepair.load_model(hf, dtype="float64")
    for kind in ("resample", "mean"):
        selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, kind=kind)
    assert state_of(hf) == state
    assert torch.equal(logits_of(hf, tokens), before)


@pytest.mark.parametrize("change", CHANGES)
def test_every_chunk_is_measured_on_the_same_model(change: Callable[[PreTrainedModel], None], tokens, donors) -> None:
    """One prompt at a time gives what all at once give, the last one too."""
    hf = random_model("llama")
    change(hf)
    model = selfrepair.load_model(hf, dtype="float64")
    together = selfrepair.ablate_heads(model, tokens, donors, heads=[(0, 1), (1, 2)])
    for prompt in range(len(tokens)):
        alone = selfrepair.ablate_heads(model, tokens[[prompt]], donors[[prompt]], heads=[(0, 1), (1, 2)])
        assert np.allclose(together["self_repair"][:, prompt], alone["self_repair"][:, 0], atol=1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["attention", "mlp", "norm"])
def test_a_model_is_as_it_was_after_an_error_in_the_middle(
    error: type[BaseException], change: Callable[[PreTrainedModel], None], where: str, tokens, donors
) -> None:
    hf = random_model("llama")
    change(hf)
    model = selfrepair.load_model(hf, dtype="float64")
    layer = hf.model.layers[2]
    module = {"attention": layer.self_attn.o_proj, "mlp": layer.mlp.up_proj, "norm": hf.model.norm}[where]
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == (3 if where == "norm" else 4):
            raise error

    module.register_forward_pre_hook(stop)
    state = state_of(hf)
    with pytest.raises(error):
        selfrepair.ablate_heads(model, tokens, donors)
    assert state_of(hf) == state


def test_rotary_tables_that_change_are_put_back(tokens: np.ndarray, donors: np.ndarray) -> None:
    hf = longrope_model()
    logits_of(hf, tokens)  # a longer run than the next: it leaves tables of its own
    before = logits_of(hf, tokens[:, :6])
    state = state_of(hf)
    selfrepair.ablate_heads(selfrepair.load_model(hf, dtype="float64"), tokens, donors, heads=[(1, 1)])
    assert state_of(hf) == state
    assert torch.equal(logits_of(hf, tokens[:, :6]), before)


def test_a_forward_of_its_own_is_put_back_and_none_is_left_where_there_was_none() -> None:
    module = nn.Linear(2, 2)
    with forward_is(module, lambda _: torch.ones(1)):
        assert module(torch.zeros(2)).item() == 1
    assert "forward" not in module.__dict__
    module.forward = own = lambda _: torch.zeros(1)
    with pytest.raises(KeyError), forward_is(module, lambda _: torch.ones(1)):
        raise KeyError
    assert module.__dict__["forward"] is own


def test_whatever_is_changed_in_a_module_is_put_back() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state, first = state_of(module), module[0]
    with left_as_it_was(module):
        module(torch.randn(4, 2))
        module.register_forward_hook(lambda *_: None)
        module[1].eval()
        module[1].register_buffer("running_mean", torch.ones(2))
        module[0] = nn.Identity()
        module.added = 3
    assert state_of(module) == state
    assert module[0] is first


def test_a_call_is_made_again_as_it_was_made() -> None:
    by_place = Call.without_hidden((torch.zeros(2), 3), {"extra": 4})
    assert by_place.args == (None, 3)
    by_name = Call.without_hidden((), {"hidden_states": torch.zeros(2), "extra": 4})
    assert dict(by_name.kwargs) == {"extra": 4}


@pytest.mark.parametrize("name", CONFIGS)
def test_parallel_and_causal_are_seen_whatever_the_config_says(name: str) -> None:
    hf = random_model(name)
    hf.config = copy.deepcopy(hf.config)
    wanted = selfrepair.load_model(hf, dtype="float64").parallel
    assert wanted == (name in ("gpt_neox", "phi", "stablelm_parallel"))
    hf.config.use_parallel_residual = not wanted
    assert selfrepair.load_model(hf, dtype="float64").parallel == wanted
    if name in ("opt", "mistral", "gemma2", "gemma3_text"):
        return  # the first does not ask whether it is causal; windows and eager attention have masks that are
    for module in hf.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(ValueError, match="is not causal: its heads at the first 4 tokens"):
        selfrepair.load_model(hf, dtype="float64")
