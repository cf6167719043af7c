"""Ablation of whole layers: against plain hooks on the whole model, and the exact sum of its parts."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import selfrepair
from selfrepair.engine.clean import CleanRun, run_clean
from selfrepair.engine.replay import COMPONENTS, SuffixReplay
from selfrepair.measure.layer_ablations import ablate_layers, mlp_output
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model
from selfrepair.quantities import PARTS, held
from selfrepair.workflow.progress import Progress

from conftest import CONFIGS, random_model

pytestmark = pytest.mark.filterwarnings("error")


def ablated(model: Model, tokens: torch.Tensor, donors: torch.Tensor) -> dict[str, np.ndarray]:
    clean, donor = run_clean(model, tokens), run_clean(model, donors)
    with Progress(model.n_layers, "", "layer", show=False) as bar:
        return ablate_layers(model, tokens, clean, donor.z.__getitem__, lambda at: mlp_output(model, at, donor), bar)


def module_of(model: Model, component: str, layer: int) -> torch.nn.Module:
    return model.attention_out(layer) if component == "attention" else model.mlp(layer)


def outputs(model: Model, tokens: torch.Tensor, hooks: list[Any] = []) -> dict[tuple[str, int], torch.Tensor]:  # noqa: B006
    """What every attention and MLP writes [prompt, pos, d_model], and the final residual, by one forward pass."""
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def keep(key):
        def hook(_, __, out):
            seen[key] = out.reshape(*tokens.shape, -1).clone()

        return hook

    def register():
        first = [make() for make in hooks]
        handles = [
            module_of(model, component, layer).register_forward_hook(keep((component, layer)))
            for component in COMPONENTS
            for layer in range(model.n_layers)
        ]
        norm = model.final_norm_module
        return [
            *first,
            *handles,
            norm.register_forward_pre_hook(lambda _, args: keep(("resid", 0))(_, _, args[0])),
        ]

    with hooked(register), torch.no_grad():
        model.hf(input_ids=tokens, use_cache=False)
    return seen


@pytest.mark.parametrize("name", [name for name in CONFIGS if "gemma" not in name or name == "gemma"])
def test_a_hooked_run_of_the_whole_model_gives_the_same(name: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    """Replace a component's output by the donor's in a forward pass of transformers, and take everything from there.

    What is normalised after is held against tests/reference.py (tests/unit/model/test_families.py).
    """
    model = selfrepair.load_model(random_model(name), dtype="float64")
    tolerance = 1e-11 if name in ("gpt2", "opt") else 5e-6  # the others compute rotary tables or norms in float32
    ids, other = torch.from_numpy(tokens), torch.from_numpy(donors)
    found = ablated(model, ids, other)
    clean, donor = outputs(model, ids), outputs(model, other)
    d = model.direction(ids[:, 1:])

    def effect(seen, key, scale):
        return (seen[key][:, :-1] * d).sum(-1) / scale

    scale = model.final_norm.scale(clean["resid", 0][:, :-1])
    for row, component in enumerate(COMPONENTS):
        for layer in range(model.n_layers):
            module = module_of(model, component, layer)
            write = donor[component, layer]

            def put(module=module, write=write):
                return module.register_forward_hook(lambda _, __, out: write.reshape(out.shape))

            seen = outputs(model, ids, [put])
            after = model.final_norm.scale(seen["resid", 0][:, :-1])
            logit = (seen["resid", 0][:, :-1] * d).sum(-1) / after
            change = {key: effect(seen, key, scale) - effect(clean, key, scale) for key in clean if key[0] != "resid"}
            own = change.pop((component, layer))
            wanted = {
                "logit_change": logit - effect(clean, ("resid", 0), scale),
                "self_repair_from_heads": sum(value for key, value in change.items() if key[0] == "attention"),
                "self_repair_from_mlps": sum(value for key, value in change.items() if key[0] == "mlp"),
                "self_repair_from_layernorm": logit - effect(seen, ("resid", 0), scale),
            }
            got = {quantity: found[quantity][row, layer] for quantity in model.quantities}
            assert np.abs(got["ablated_direct_effect"] - got["direct_effect"] - own.numpy()).max() < tolerance
            for quantity, value in wanted.items():
                assert np.abs(got[quantity] - value.numpy()).max() < tolerance, (component, layer, quantity)
            assert float(wanted["logit_change"].abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_parts_add_up_and_nothing_follows_the_last_mlp(name: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    model = selfrepair.load_model(random_model(name), dtype="float64")
    found = ablated(model, torch.from_numpy(tokens), torch.from_numpy(donors))
    parts = sum(found[part] for part in held(PARTS, found))
    change = found["ablated_direct_effect"] - found["direct_effect"]
    assert np.abs(found["logit_change"] - change - parts).max() < 1e-12
    assert not found["self_repair_from_heads"][:, -1].any()
    attention, mlp = found["self_repair_from_mlps"][:, -1]
    assert not mlp.any()
    # In a parallel layer the MLP does not see the attention.
    assert attention.any() != model.parallel


def test_an_attention_of_one_head_is_that_head(tokens: np.ndarray, donors: np.ndarray) -> None:
    """With every other head's output weights zero, ablating the layer is ablating the head."""
    hf = random_model("gpt2")
    silence(hf, layer=1, keep=2)
    model = selfrepair.load_model(hf, dtype="float64")
    found = ablated(model, torch.from_numpy(tokens), torch.from_numpy(donors))
    head = selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2)])
    for quantity in model.quantities:
        assert np.abs(found[quantity][0, 1] - head[quantity].values[0]).max() < 1e-12, quantity


def silence(hf: PreTrainedModel, layer: int, keep: int) -> None:
    weight = hf.transformer.h[layer].attn.c_proj.weight
    with torch.no_grad():
        rows = torch.arange(weight.shape[0]) // 8 != keep
        weight[rows] = 0


def test_the_donors_own_layers_change_nothing(tokens: np.ndarray) -> None:
    model = selfrepair.load_model(random_model("llama"), dtype="float64")
    ids = torch.from_numpy(tokens)
    found = ablated(model, ids, ids)
    for quantity in ("logit_change", *held(PARTS, found)):
        assert np.abs(found[quantity]).max() < 1e-12, quantity


def test_unknown_component_is_refused(tokens: np.ndarray) -> None:
    model = selfrepair.load_model(random_model("gpt2"), dtype="float64")
    ids = torch.from_numpy(tokens)
    clean: CleanRun = run_clean(model, ids)
    with pytest.raises(ValueError, match="component is 'norm'; wanted one of attention, mlp"):
        SuffixReplay(model, ids, clean).ablate_layer(0, "norm", clean.resid_pre[0])
