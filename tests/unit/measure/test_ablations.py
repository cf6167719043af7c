"""The library interface: identities in every architecture, known answers, and errors."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model
from selfrepair.quantities import ABLATION_KINDS, PARTS, held

from conftest import CONFIGS, VOCAB, in_bfloat16, random_model


def load(name: str, **options: bool) -> Model:
    return selfrepair.load_model(random_model(name), dtype="float64", **options)


def own_logits(hf: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    """Mean-centred logits of the token that follows, by the model's own forward."""
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = hf(input_ids=ids, use_cache=False).logits[:, :-1]
    if (cap := getattr(hf.config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.atanh(logits / cap)
    logits = logits - logits.mean(-1, keepdim=True)
    return logits.gather(-1, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_parts_add_up_and_equal_a_hooked_run(name: str, kind: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    """Every architecture: the identity on every token, and the logit change by plain hooks on the whole model."""
    model = load(name)
    tolerance = 1e-12 if name in ("gpt2", "opt") else 2e-6  # the others compute rotary tables or norms in float32
    dataset = selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, kind=kind)
    parts = sum(dataset[part] for part in held(PARTS, dataset))
    assert float(np.abs(dataset["self_repair"] - parts).max()) < 1e-12
    ids = torch.from_numpy(tokens)
    z_donor = run_clean(model, torch.from_numpy(donors)).z
    z_clean = run_clean(model, ids).z
    clean = own_logits(model.hf, tokens)
    for row, (layer, head) in enumerate([(0, 1), (1, 3), (2, 0)]):
        at = layer * model.n_heads + head
        replacement = {
            "resample": z_donor[layer][:, :, head],
            "mean": z_clean[layer][:, :, head].mean((0, 1)),
            "zero": model.value_constant[layer, head],
        }[kind]
        columns = slice(head * model.d_head, (head + 1) * model.d_head)

        def overwrite(_, args, columns=columns, replacement=replacement):
            z = args[0].clone()
            z[..., columns] = replacement
            return (z, *args[1:])

        with hooked(lambda layer=layer, hook=overwrite: [model.attention_out(layer).register_forward_pre_hook(hook)]):
            ablated = own_logits(model.hf, tokens)
        assert (dataset["layer"].values[at], dataset["head_index"].values[at]) == (layer, head), row
        wanted = (ablated - clean).numpy()
        assert np.abs(dataset["logit_change"].values[at] - wanted).max() < tolerance
        assert np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_ablated_head_has_no_direct_effect(name: str, tokens: np.ndarray) -> None:
    dataset = selfrepair.ablate_heads(load(name), tokens, kind="zero")
    assert float(np.abs(dataset["ablated_direct_effect"]).max()) < 1e-12


@pytest.mark.parametrize("name", ["gpt_neox", "phi", "stablelm_parallel"])
def test_nothing_but_the_norm_repairs_in_a_parallel_last_layer(
    name: str, tokens: np.ndarray, donors: np.ndarray
) -> None:
    dataset = selfrepair.ablate_heads(load(name), tokens, donors, heads=[(2, 0), (1, 0)])
    last, before = dataset.isel(head=0), dataset.isel(head=1)
    assert not last["self_repair_from_heads"].any()
    assert not last["self_repair_from_mlps"].any()
    assert before["self_repair_from_heads"].any()
    assert before["self_repair_from_mlps"].any()


def test_value_constant_is_what_biases_alone_give() -> None:
    model = load("gpt2")
    block = model.layers[1]
    width = model.d_model
    bias = block.attn.c_attn.bias[2 * width :] + block.ln_1.bias @ block.attn.c_attn.weight[:, 2 * width :]
    assert torch.allclose(model.value_constant[1].flatten(), bias, atol=1e-12)
    assert float(bias.detach().abs().max()) > 0.1
    assert not load("llama").value_constant.any()


def test_donor_equal_to_the_prompt_changes_nothing(tokens: np.ndarray) -> None:
    for name in ("gpt2", "gpt_neox", "llama"):
        dataset = selfrepair.ablate_heads(load(name), tokens, tokens)
        for quantity in ("logit_change", "self_repair", *held(PARTS, dataset)):
            assert float(np.abs(dataset[quantity]).max()) < 1e-12, (name, quantity)
        assert np.allclose(dataset["ablated_scale"], dataset["clean_scale"], atol=1e-12)


def test_head_that_writes_nothing_changes_nothing(tokens: np.ndarray, donors: np.ndarray) -> None:
    hf = random_model("llama")
    columns = slice(8, 16)
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight[:, columns] = 0
    dataset = selfrepair.ablate_heads(
        selfrepair.load_model(hf, dtype="float64"), tokens, donors, heads=[(1, 1), (1, 2)]
    )
    silent, other = dataset.isel(head=0), dataset.isel(head=1)
    assert float(np.abs(silent["logit_change"]).max()) < 1e-12
    assert not silent["direct_effect"].any()
    assert float(np.abs(other["logit_change"]).max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_bfloat16_rounds_activations_and_nothing_that_is_measured(
    name: str, tokens: np.ndarray, donors: np.ndarray
) -> None:
    hf = in_bfloat16(random_model(name, torch.float32))
    exact = selfrepair.ablate_heads(selfrepair.load_model(copy.deepcopy(hf).float()), tokens, donors)
    rounded = selfrepair.ablate_heads(selfrepair.load_model(hf, weights="bfloat16"), tokens, donors)
    for quantity in ("direct_effect", "ablated_direct_effect", "logit_change", *held(PARTS, exact), "ablated_scale"):
        assert rounded[quantity].dtype == np.float32
        off = np.abs(rounded[quantity] - exact[quantity]).values
        assert 0 < off.mean() < 0.01 * np.abs(exact[quantity].values).max(), quantity
        # A value that was rounded itself would be one of few.
        mantissas = np.frexp(rounded[quantity].values)[0] * 2**8
        assert (mantissas[mantissas != 0] % 1 != 0).mean() > 0.9, quantity
        if quantity == "ablated_scale":
            continue
        # What is heard of the noise on the ablations that are repeated is about what there is on all.
        count, _, squares = rounded.attrs[f"noise_of_{quantity}"]
        assert count == rounded.attrs["proof_ablations"] * (tokens.shape[1] - 1)
        heard, there = np.sqrt(squares / count), np.sqrt((off**2).mean())
        assert 0.3 * there < heard < 3 * there, quantity
    assert not any(name.startswith("noise") for name in exact.attrs)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_that_are_offloaded_are_the_same(
    dtype: str, tokens: np.ndarray, donors: np.ndarray, tmp_path: Path
) -> None:
    random_model("gpt2", torch.float32).save_pretrained(tmp_path)
    options = {"dtype": "float32", "weights": "bfloat16"} if dtype == "bfloat16" else {"dtype": dtype}
    here, away = (
        selfrepair.ablate_heads(selfrepair.load_model(tmp_path, offload=offload, **options), tokens, donors)
        for offload in (False, True)
    )
    xr.testing.assert_identical(here, away)
    with pytest.raises(ValueError, match="a model in memory is used where it is"):
        selfrepair.load_model(random_model("gpt2", torch.float32), offload=True)


@pytest.mark.parametrize(("weights", "dtype"), [("float16", "float32"), ("bfloat16", "float64")])
def test_weights_of_another_type_are_refused(weights: str, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"weights are '{weights}' with dtype '{dtype}'; wanted 'bfloat16' with"):
        selfrepair.load_model(random_model("llama", torch.float32), dtype=dtype, weights=weights)


def without_mlps_and_later_attention(hf: PreTrainedModel) -> PreTrainedModel:
    """Leave the heads of layer 0 alone with the final norm: nothing else can respond to an ablation."""
    with torch.no_grad():
        for number, layer in enumerate(hf.model.layers):
            layer.mlp.down_proj.weight.zero_()
            if number:
                layer.self_attn.o_proj.weight.zero_()
    return hf


def test_only_the_norm_can_repair_where_nothing_else_is_left(tokens: np.ndarray, donors: np.ndarray) -> None:
    model = selfrepair.load_model(without_mlps_and_later_attention(random_model("llama")), dtype="float64")
    dataset = selfrepair.ablate_heads(model, tokens, donors, heads=[(0, 0), (0, 3)])
    assert not dataset["self_repair_from_heads"].any()
    assert not dataset["self_repair_from_mlps"].any()
    # By hand: the final residual loses the head's output and nothing else, then is divided by its new scale.
    clean = run_clean(model, torch.from_numpy(tokens))
    donor = run_clean(model, torch.from_numpy(donors))
    d = model.direction(torch.from_numpy(tokens[:, 1:]))
    final = clean.resid_pre[-1][:, :-1]
    for row, head in enumerate((0, 3)):
        ablated = final + ((donor.z[0] - clean.z[0])[:, :-1, head] @ model.W_O[0][head])
        scale = model.final_norm.scale(ablated)
        by_hand = (ablated * d).sum(-1) * (1 / scale - 1 / clean.scale)
        assert np.allclose(dataset["self_repair_from_layernorm"][row], by_hand, atol=1e-7)
        assert np.allclose(dataset["ablated_scale"][row], scale, atol=1e-6)
    assert float(np.abs(dataset["self_repair_from_layernorm"]).max()) > 1e-2


def test_freezing_the_final_scale_changes_the_output_by_the_layernorm_part(
    tokens: np.ndarray, donors: np.ndarray
) -> None:
    """Really freeze the scale, in the whole hooked model: the closed form says by how much that changes the logit."""
    model = load("gpt2")
    dataset = selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2)])
    clean = run_clean(model, torch.from_numpy(tokens))
    donor = run_clean(model, torch.from_numpy(donors))
    columns = slice(2 * model.d_head, 3 * model.d_head)

    def overwrite(_, args):
        z = args[0].clone()
        z[..., columns] = donor.z[1][:, :, 2]
        return (z,)

    def frozen_norm(module, args, out):
        centred = args[0] - args[0].mean(-1, keepdim=True)
        frozen = torch.nn.functional.pad(clean.scale, (0, 1), value=1.0)
        return module.weight * centred / frozen[..., None] + module.bias

    def register():
        return [
            model.attention_out(1).register_forward_pre_hook(overwrite),
            model.final_norm_module.register_forward_hook(frozen_norm),
        ]

    unablated = own_logits(model.hf, tokens)
    with hooked(register):
        frozen_change = (own_logits(model.hf, tokens) - unablated).numpy()
    by_formula = dataset["logit_change"] - dataset["self_repair_from_layernorm"]
    assert np.allclose(by_formula[0], frozen_change, atol=1e-12)
    assert float(np.abs(dataset["self_repair_from_layernorm"]).max()) > 1e-3


def test_uncentred_logits_give_the_models_own(tokens: np.ndarray) -> None:
    model = load("phi", center_unembed=False)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        raw = model.hf(input_ids=ids).logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(run_clean(model, ids).correct_logit, raw, atol=1e-6)


def test_prompts_do_not_depend_on_each_other(tokens: np.ndarray, donors: np.ndarray) -> None:
    """Many batches of prompts and heads give what one prompt and one head give."""
    model = load("llama")
    many = np.concatenate([tokens] * 40)
    whole = selfrepair.ablate_heads(model, many, np.concatenate([donors] * 40))
    single = selfrepair.ablate_heads(model, tokens[3:4], donors[3:4], heads=[(1, 2)])
    assert whole.sizes == {"head": 12, "prompt": 240, "pos": 9}
    for quantity in ("logit_change", "self_repair_from_heads", "direct_effect"):
        assert np.allclose(whole[quantity][6, 3::6], single[quantity][0], atol=1e-9)


def test_models_own_state_is_left_alone(tokens: np.ndarray, donors: np.ndarray) -> None:
    hf = random_model("gpt2")
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    logits = own_logits(hf, tokens)
    selfrepair.ablate_heads(selfrepair.load_model(hf, dtype="float64"), tokens, donors)
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert torch.equal(own_logits(hf, tokens), logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


WRONG_CALLS = {
    "shapes differ": ({"donors": slice(0, 5)}, r"donors have shape \(5, 10\), tokens \(6, 10\)"),
    "no donors": ({"donors": None}, "wants donors"),
    "donors for zero": ({"kind": "zero"}, "takes none"),
    "unknown kind": ({"kind": "noise"}, "'noise'; wanted one of resample, mean, zero"),
    "no such head": ({"heads": [(0, 4)]}, r"\(layer 0, head 4\) does not exist: .* layers 0 to 2 and heads 0 to 3"),
    "negative layer": ({"heads": [(-1, 0)]}, "does not exist"),
    "twice": ({"heads": [(0, 1), (0, 1)]}, "twice"),
    "no head": ({"heads": []}, "empty"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_calls(case: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    options, message = WRONG_CALLS[case]
    options = {"donors": donors, **options}
    if isinstance(options["donors"], slice):
        options["donors"] = donors[options["donors"]]
    with pytest.raises(ValueError, match=message):
        selfrepair.ablate_heads(load("gpt2"), tokens, **options)


def test_wrong_tokens(tokens: np.ndarray) -> None:
    model = load("gpt2")
    for wrong, message in (
        (np.where(tokens == 1, VOCAB, tokens), f"the vocabulary of .* has 0 to {VOCAB - 1}"),
        (tokens[0], r"shape \(10,\); wanted integers \[prompt, pos\]"),
        (tokens.astype(float), "wanted integers"),
        (tokens[:, :1], "at least two tokens"),
        (np.tile(tokens, 7), "takes at most 64"),
    ):
        with pytest.raises(ValueError, match=message):
            selfrepair.ablate_heads(model, wrong, kind="zero")


def test_weights_that_are_not_finite_are_an_error(tokens: np.ndarray) -> None:
    hf = random_model("llama")
    model = selfrepair.load_model(hf, dtype="float64")
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not the sum of its parts"):
        selfrepair.ablate_heads(model, tokens, kind="zero")


def test_parts_of_another_model_break_the_identity(tokens: np.ndarray, donors: np.ndarray) -> None:
    """A write that the definitions do not know of is noticed, not measured."""
    hf = random_model("llama")
    model = selfrepair.load_model(hf, dtype="float64")
    hf.model.layers[2].register_forward_hook(lambda _, args, out: out * 1.01)
    with pytest.raises(ValueError, match="not the sum of its parts"):
        selfrepair.ablate_heads(model, tokens, donors)


def test_models_that_the_definitions_do_not_cover() -> None:
    from transformers import BloomConfig, OPTConfig

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 20}
    with pytest.raises(ValueError, match=r"bloom.*adds the residual stream to its own output"):
        selfrepair.load_model(AutoModelForCausalLM.from_config(BloomConfig(**sizes)).eval())
    narrow = OPTConfig(**sizes, ffn_dim=16, word_embed_proj_dim=8)
    with pytest.raises(ValueError, match="projection"):
        selfrepair.load_model(AutoModelForCausalLM.from_config(narrow).eval())


def test_hidden_change_of_a_covered_architecture_is_found_at_load() -> None:
    hf = random_model("llama")
    hf.lm_head.register_forward_hook(lambda _, args, out: 30 * torch.tanh(out / 3))
    with pytest.raises(ValueError, match=r"logits are not r \. d / s"):
        selfrepair.load_model(hf, dtype="float64")
    hf = random_model("llama")
    hf.model.layers[1].mlp.register_forward_hook(lambda _, args, out: out)
    hf.model.layers[1].register_forward_hook(lambda _, args, out: out * 0.5)
    with pytest.raises(ValueError, match="do not add up to the final residual"):
        selfrepair.load_model(hf, dtype="float64")


def test_any_part_in_another_state_is_refused() -> None:
    """Not the first weight alone is looked at, nor the outermost module."""
    hf = random_model("llama")
    hf.model.layers[2].mlp.train()
    with pytest.raises(ValueError, match=r"in training mode \(model\.layers\.2\.mlp.*call model\.eval\(\)"):
        selfrepair.load_model(hf, dtype="float64")
    hf.eval().model.layers[1].mlp.down_proj.to(torch.float32)
    with pytest.raises(ValueError, match=r"is torch\.float32 \(model\.layers\.1\.mlp\.down_proj\.weight\), asked for"):
        selfrepair.load_model(hf, dtype="float64")


def test_settings_of_a_model_in_memory() -> None:
    hf = random_model("llama")
    with pytest.raises(ValueError, match=r"float64 .*, asked for torch.float32: convert it first"):
        selfrepair.load_model(hf)
    with pytest.raises(ValueError, match="wanted one of float32, float64"):
        selfrepair.load_model(hf, dtype="float16")
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        selfrepair.load_model(random_model("llama").train(), dtype="float64")
    with pytest.raises(ValueError, match=r"holds no model \(no config.json\)"):
        selfrepair.load_model("no/such/folder")


def test_what_fails_in_a_model_is_its_config_or_memory() -> None:
    """Of memory that cannot be had, torch's own error goes up: nothing is wrong with the model."""
    hf = random_model("llama")
    handle = hf.model.layers[1].mlp.register_forward_hook(lambda _, args, out: out @ torch.empty(3, 2, dtype=out.dtype))
    with pytest.raises(ValueError, match=r"does not run on a short prompt \(.*: correct its config"):
        selfrepair.load_model(hf, dtype="float64")
    handle.remove()
    hf.model.layers[1].mlp.register_forward_hook(lambda *_: torch.empty(2**50))
    with pytest.raises(RuntimeError, match="you tried to allocate"):
        selfrepair.load_model(hf, dtype="float64")


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, selfrepair; assert 'torch' not in sys.modules; assert callable(selfrepair.load_model)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_configs_with_biases_are_really_random() -> None:
    """Guards the other tests: biases and norm weights that are all zero or one would hide mistakes."""
    for config in (GPT2Config, LlamaConfig):
        hf = random_model("gpt2" if config is GPT2Config else "llama")
        vectors = [parameter for parameter in hf.parameters() if parameter.ndim == 1]
        assert vectors
        assert all(float(vector.detach().std()) > 0.1 for vector in vectors)


def test_folder_that_transformers_wrote(tmp_path: Path, tokens: np.ndarray) -> None:
    hf = random_model("llama", torch.float32)
    hf.save_pretrained(tmp_path)
    from_folder = selfrepair.ablate_heads(selfrepair.load_model(tmp_path), tokens, kind="zero")
    in_memory = selfrepair.ablate_heads(selfrepair.load_model(hf), tokens, kind="zero")
    assert from_folder.identical(in_memory)
    assert from_folder["self_repair"].dtype == np.float32
