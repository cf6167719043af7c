"""Proof at run time: what replay gets wrong is noticed by plain runs of the whole model, whatever is wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, PreTrainedModel, Qwen3MoeConfig

import selfrepair
from selfrepair.engine import proof, replay
from selfrepair.engine.proof import Proof
from selfrepair.engine.rounding import BFLOAT16_TIMES, REPEATED_ROUNDINGS
from selfrepair.measure import ablations
from selfrepair.model.calls import Call
from selfrepair.model.model import Model
from selfrepair.quantities import ABLATION_KINDS, CHOSEN_EXPERTS
from unit.model.test_calls import longrope_model

from conftest import CONFIGS, in_bfloat16, random_model

NOTICED = "ablations of .* are not what the whole model gives with plain hooks: .* where rounding explains"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_sound_runs_are_proven(name: str, kind: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    model = selfrepair.load_model(random_model(name, torch.float32))
    found = selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, kind=kind).attrs
    assert found["proof_ablations"] >= 1
    # Every quantity and the ablated scale, at every position that predicts.
    numbers = len(model.quantities) + 1
    assert found["proof_numbers"] == found["proof_ablations"] * numbers * (tokens.shape[1] - 1)
    assert 0 < found["proof_largest_difference"] < 1e-4


# --- the causes that once passed in silence, with what refuses them taken away -----------------------------------------


def not_causal(hf: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in hf.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    monkeypatch.setattr(Model, "check_causal", lambda *_: None)


def recorded_at_the_cut_length(_: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "layer_calls", lambda self, length, cut=0: self._layer_recorder.calls(length - cut))


def as_is(*_: Any) -> None:
    pass


def bidirectional_gemma() -> PreTrainedModel:
    options = CONFIGS["gemma"].to_diff_dict() | {"use_bidirectional_attention": True}
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(GemmaConfig(**options), dtype=torch.float64)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(torch.randn_like(parameter) * max(0.3, parameter.shape[-1] ** -0.5))
    return hf.eval()


@pytest.mark.parametrize(
    ("make", "spoil"),
    [
        (lambda: random_model("llama"), not_causal),
        (lambda: random_model("gpt2"), not_causal),
        (bidirectional_gemma, not_causal),
        (longrope_model, recorded_at_the_cut_length),
    ],
)
def test_a_cause_that_is_not_refused_is_noticed(
    make: Callable[[], PreTrainedModel],
    spoil: Callable[[PreTrainedModel, pytest.MonkeyPatch], None],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hf = make()
    spoil(hf, monkeypatch)
    # The first length that is beyond the boundary whole, and short of it when the last position is left out.
    tokens = rng.integers(3, 100, size=(3, 9))
    model = selfrepair.load_model(hf, dtype="float64")
    with pytest.raises(ValueError, match=NOTICED):
        selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, 0), heads=[(0, 1)])


@pytest.mark.parametrize("component", ["attention", "mlp"])
def test_a_wrong_postnorm_is_noticed(
    component: str, tokens: np.ndarray, donors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales of the clean run, from which a layer's post-norm was forgotten."""
    model = selfrepair.load_model(random_model("gemma3_text"), dtype="float64")
    own = ablations.run_clean

    def forgets_one(*args: Any) -> Any:
        clean = own(*args)
        with torch.inference_mode():
            clean.postnorm_scales[component][2] = 1
        return clean

    monkeypatch.setattr(ablations, "run_clean", forgets_one)
    with pytest.raises(ValueError, match=f"{NOTICED}|not the sum of its parts"):
        selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2)])


def mixture(dtype: torch.dtype) -> PreTrainedModel:
    """Three layers, of which the middle one is dense and the others choose two of four experts."""
    config = Qwen3MoeConfig(
        **{**CONFIGS["qwen3"].to_diff_dict(), "model_type": "qwen3_moe"},
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    )
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(torch.randn_like(parameter) * max(0.3, parameter.shape[-1] ** -0.5))
    return hf.eval()


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_a_change_of_experts_is_proven(kind: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    model = selfrepair.load_model(mixture(torch.float32))
    found = selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, kind=kind)
    assert float(abs(found[CHOSEN_EXPERTS]).max()) > 0.01
    assert found.attrs["proof_largest_difference"] < 1e-4
    per_position = found.attrs["proof_numbers"] / found.attrs["proof_ablations"] / (tokens.shape[1] - 1)
    assert per_position == len(model.quantities) + 1


def test_a_wrong_choice_of_experts_is_noticed(
    tokens: np.ndarray, donors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean run whose experts are those of other prompts."""
    model = selfrepair.load_model(mixture(torch.float64), dtype="float64")
    own = ablations.run_clean

    def of_others(*args: Any) -> Any:
        clean = own(*args)
        return replace(clean, chosen_experts=clean.chosen_experts.roll(1, 1))

    monkeypatch.setattr(ablations, "run_clean", of_others)
    with pytest.raises(ValueError, match=NOTICED.replace(": .* where", f": {CHOSEN_EXPERTS} .* where")):
        selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2)])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox_sequential"])
def test_a_wrong_parallel_flag_is_noticed(name: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    model = selfrepair.load_model(random_model(name), dtype="float64")
    model.parallel = True
    with pytest.raises(ValueError, match=NOTICED):
        selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2)])


# --- faults planted in replay ----------------------------------------------------------------------------------------


def another_heads_write(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.Batch.write
    monkeypatch.setattr(replay.Batch, "write", lambda self, z, W_O: own(self, z, W_O.roll(1, 0)))


def a_write_that_is_a_thousandth_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.Batch.write
    monkeypatch.setattr(replay.Batch, "write", lambda self, z, W_O: own(self, z, W_O) * 1.001)


def another_prompts_donor(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.SuffixReplay._run
    monkeypatch.setattr(
        replay.SuffixReplay,
        "_run",
        lambda self, start, batch, replacement, changes: own(self, start, batch, replacement.roll(1, 0), changes),
    )


def the_residual_of_the_layer_after(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.SuffixReplay._start

    def start(self: replay.SuffixReplay, layer: int) -> Any:
        found = own(self, layer)
        return replay._Start(layer, found.z, self.clean.resid_pre[layer + 1][:, :-1].contiguous(), found.attention)

    monkeypatch.setattr(replay.SuffixReplay, "_start", start)


def positions_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Call, "at", lambda self, places, own=Call.at: own(self, torch.arange(places.stop).flip(0)))


def no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Call.replay
    monkeypatch.setattr(
        Call, "replay", lambda self, *args: own(Call(self.args, {**self.kwargs, "attention_mask": None}), *args)
    )


def a_layer_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.SuffixReplay._run_changed

    def run(self: replay.SuffixReplay, *args: Any) -> Any:
        last = self.model.layers[-1]
        kept, last.forward = last.forward, lambda hidden, *_, **__: hidden
        try:
            return own(self, *args)
        finally:
            last.forward = kept

    monkeypatch.setattr(replay.SuffixReplay, "_run_changed", run)


def the_clean_scale_of_another_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.SuffixReplay.__init__

    def init(self: replay.SuffixReplay, model: Any, tokens: Any, clean: Any) -> None:
        own(self, model, tokens, clean)
        self.scaled = self.scaled.roll(1, 0)

    monkeypatch.setattr(replay.SuffixReplay, "__init__", init)


FAULTS = [
    another_heads_write,
    a_write_that_is_a_thousandth_too_long,
    another_prompts_donor,
    the_residual_of_the_layer_after,
    positions_in_another_order,
    a_layer_left_out,
    the_clean_scale_of_another_prompt,
]


@pytest.mark.parametrize("plant", FAULTS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fault_in_replay_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None],
    name: str,
    dtype: torch.dtype,
    tokens: np.ndarray,
    donors: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = selfrepair.load_model(random_model(name, dtype), dtype=str(dtype).removeprefix("torch."))
    plant(monkeypatch)
    # Some faults break the identity too; that of the proof must be enough.
    monkeypatch.setattr("selfrepair.engine.sweep.check_identity", lambda *_: None)
    with pytest.raises(ValueError, match=NOTICED):
        selfrepair.ablate_heads(model, tokens, donors, heads=[(0, 1), (1, 3)])


def test_a_window_that_is_forgotten_is_noticed(tokens, donors, monkeypatch: pytest.MonkeyPatch) -> None:
    model = selfrepair.load_model(random_model("mistral"), dtype="float64")
    no_mask(monkeypatch)
    with pytest.raises(ValueError, match=NOTICED):
        selfrepair.ablate_heads(model, tokens, donors, heads=[(0, 1)])


# --- bfloat16 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def repeated_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head on every prompt."""
    monkeypatch.setattr(proof, "SHARE", 100.0)
    monkeypatch.setattr(proof, "HEADS_A_PROMPT", 100)


@pytest.mark.parametrize("name", CONFIGS)
def test_half_of_what_is_allowed_is_enough_in_bfloat16(
    name: str, tokens: np.ndarray, donors: np.ndarray, repeated_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of random models carry rounding far: by one rounding alone, most of these would be refused."""
    monkeypatch.setattr(proof, "REPEATED_ROUNDINGS", REPEATED_ROUNDINGS // 2)
    monkeypatch.setattr(proof, "BFLOAT16_TIMES", BFLOAT16_TIMES // 2)
    model = selfrepair.load_model(in_bfloat16(random_model(name, torch.float32)), weights="bfloat16")
    found = selfrepair.ablate_heads(model, tokens, donors).attrs
    assert found["proof_ablations"] == model.n_layers * model.n_heads * len(tokens)


@pytest.mark.parametrize("plant", [fault for fault in FAULTS if fault is not a_write_that_is_a_thousandth_too_long])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_fault_in_replay_is_noticed_in_bfloat16(
    plant: Callable[[pytest.MonkeyPatch], None],
    name: str,
    tokens: np.ndarray,
    donors: np.ndarray,
    repeated_all: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = selfrepair.load_model(in_bfloat16(random_model(name, torch.float32)), weights="bfloat16")
    plant(monkeypatch)
    monkeypatch.setattr("selfrepair.engine.sweep.check_identity", lambda *_: None)
    with pytest.raises(ValueError, match=NOTICED):
        selfrepair.ablate_heads(model, tokens, donors, heads=[(0, 1), (1, 3)])


# --- what is repeated ------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Model:
    return selfrepair.load_model(random_model("llama", torch.float32))


def test_the_choice_is_seeded_and_spread_and_costs_its_share(model: Model) -> None:
    wanted = np.ones((270, 8), bool)
    layers = np.full(270, model.n_layers / 2)
    chosen = Proof(model, "", seed=3).draw(wanted, layers)
    assert chosen == Proof(model, "", seed=3).draw(wanted, layers)
    assert chosen != Proof(model, "", seed=4).draw(wanted, layers)
    runs = sum(2 + len(rows) for _, rows in chosen)
    assert 5 <= runs <= 0.01 * 270 * 8 / 2
    for _, rows in chosen:
        assert [row // 90 for row in rows] == [0, 1, 2]


def test_what_is_measured_nowhere_is_not_chosen(model: Model) -> None:
    wanted = np.zeros((4, 8), bool)
    wanted[2, 5] = True
    assert Proof(model, "", seed=0).draw(wanted, np.ones(4)) == [(5, [2])]
    assert Proof(model, "", seed=0).draw(np.zeros((4, 8), bool), np.ones(4)) == []


def test_numbers_that_were_not_measured_are_not_compared(model: Model) -> None:
    held = Proof(model, "numbers", seed=0)
    wanted, summed = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)
    held.compare("one", np.array([1.0, np.nan, 3.0]), wanted, summed)
    assert (held.numbers, held.largest) == (2, 0.0)
    held.compare("scale", np.array([1.0, np.nan, 3.00001]), wanted, summed, unit="")
    assert (held.numbers, held.largest) == (4, 0.0)
    with pytest.raises(ValueError, match=r"numbers of .* plain hooks: one off by 0\.0625 logits"):
        held.compare("one", np.array([1.0, np.nan, 3.0625]), wanted, summed)
    with pytest.raises(ValueError, match="off by inf"):
        held.compare("one", np.array([1.0, np.inf, 3.0]), wanted, summed)
