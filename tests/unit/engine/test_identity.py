"""The identity's tolerance has two sides: rounding of large terms that cancel is no error, a thousandth of an effect is one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import xarray as xr
from transformers import PreTrainedModel

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.model.model import Model
from selfrepair.quantities import ABLATION_KINDS, PARTS, POSTNORMS, held

from conftest import random_model
from planted.massive import CONFIGS, VOCAB, massive_model


@pytest.fixture(autouse=True)
def _unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests check shapes at every call, which would take most of this file's time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


DTYPES = ("float32", "float64")


def prompts() -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(0).integers(1, VOCAB, (4, 16))
    return tokens, np.roll(tokens, 1, axis=0)


@lru_cache(maxsize=1)
def massive(family: str, size: float, gain: float) -> PreTrainedModel:
    return massive_model(family, size, gain)


def load(hf: PreTrainedModel, dtype: str) -> Model:
    return selfrepair.load_model(copy.deepcopy(hf).to(getattr(torch, dtype)), dtype=dtype)


def measure(model: Model, kind: str = "resample", **options: Any) -> xr.Dataset:
    tokens, donors = prompts()
    return selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, kind=kind, **options)


# --- nothing sound is refused ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("less_room_for_rounding")
@pytest.mark.parametrize(("size", "gain"), [(1.0, 1.0), (100.0, 5.0), (1e4, 20.0)])
@pytest.mark.parametrize("family", CONFIGS)
def test_massive_activations_are_measured(family: str, size: float, gain: float) -> None:
    """All heads and kinds, in both types; and float32 gives what float64 gives, to its rounding of what is summed."""
    hf = massive(family, size, gain)
    exact, rounded = load(hf, "float64"), load(hf, "float32")
    clean = run_clean(exact, torch.from_numpy(prompts()[0]))
    summed = clean.head_direct_effect.abs().sum((0, -1)) + clean.mlp_direct_effect.abs().sum(0)
    for kind in ABLATION_KINDS:
        wanted, got = measure(exact, kind), measure(rounded, kind)
        assert np.abs(wanted["self_repair"] - sum(wanted[part] for part in held(PARTS, wanted))).max() < 1e-12 * float(
            summed.max()
        )
        for name in ("self_repair", "logit_change", *held(PARTS, wanted)):
            off = np.abs(got[name] - wanted[name]).values.max()
            assert off < 1e-4 * max(1.0, float(summed.max())), (name, kind)


def test_the_planted_activations_are_massive() -> None:
    """Guards the test above: the terms that cancel are far larger than what they leave."""
    for family in CONFIGS:
        model = load(massive(family, 1e4, 20.0), "float64")
        clean = run_clean(model, torch.from_numpy(prompts()[0]))
        cancelling = float(clean.mlp_direct_effect.abs().amax())
        assert cancelling > 10 * float(clean.head_direct_effect.abs().amax()), family
        assert cancelling > 100, family
        left = float(clean.mlp_direct_effect.sum(0).abs().median())
        assert left < cancelling, family


# --- a thousandth of an effect is an error -----------------------------------------------------------------------------

Plant = Callable[[Model, float], Any]


def hook_later_mlp(model: Model, factor: float) -> Any:
    """The last MLP's write reaches the residual changed by a factor that the measurement does not see."""
    last = model.layers[-1]
    held: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: torch.Tensor) -> None:
        held[:] = [out]

    def add(_: Any, __: Any, out: Any) -> Any:
        resid = out[0] if isinstance(out, tuple) else out
        resid = resid + (factor - 1) * held[0].reshape(resid.shape)
        return (resid, *out[1:]) if isinstance(out, tuple) else resid

    model.mlp(model.n_layers - 1).register_forward_hook(keep)
    return last.register_forward_hook(add)


@pytest.fixture
def sound(request: pytest.FixtureRequest) -> tuple[Model, float]:
    """A model without massive activations in both types, and its typical self-repair in logits."""
    family, dtype = request.param
    model = load(random_model(family), dtype)
    tokens = np.random.default_rng(0).integers(3, 101, (4, 16))
    dataset = selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, axis=0))
    return model, float(np.abs(dataset["self_repair"]).mean())


SOUND = [(family, dtype) for family in ("llama", "gpt2", "gpt_neox", "gemma3_text") for dtype in DTYPES]
OF_SOUND = [
    (part, (family, dtype)) for family, dtype in SOUND for part in PARTS if part != POSTNORMS or family == "gemma3_text"
]
"""The parts that each has."""


def changed(monkeypatch: pytest.MonkeyPatch, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let replay give one of its quantities wrong."""
    from selfrepair.engine import replay

    measured = replay.SuffixReplay._measure

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = measured(self, *args, **kwargs)
        values = {**found.values, part: change(found.values[part])}
        values["self_repair"] = values["logit_change"] - (values["ablated_direct_effect"] - values["direct_effect"])
        return replace(found, values=values)

    monkeypatch.setattr(replay.SuffixReplay, "_measure", wrong)


def refused(model: Model) -> bool:
    tokens = np.random.default_rng(0).integers(3, 101, (4, 16))
    try:
        selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, axis=0))
    except ValueError as error:
        assert "not the sum of its parts" in str(error)  # noqa: PT017
        return True
    return False


@pytest.mark.parametrize(
    ("part", "sound"),
    [*OF_SOUND, *((part, of) for of in SOUND for part in ("logit_change", "direct_effect", "ablated_direct_effect"))],
    indirect=["sound"],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_thousandth_of_a_typical_self_repair_on_one_token_is_refused(
    part: str, sound: tuple[Model, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, typical = sound

    def shift(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[-1, 1, 3] += typical / 1000
        return values

    assert not refused(model)
    changed(monkeypatch, part, shift)
    assert refused(model)


@pytest.mark.parametrize(
    ("part", "sound"),
    OF_SOUND,
    indirect=["sound"],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_part_that_is_off_by_a_thousandth_is_refused(
    part: str, sound: tuple[Model, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = sound
    changed(monkeypatch, part, lambda values: values * 1.001)
    assert refused(model)


@pytest.mark.parametrize("sound", SOUND, indirect=True, ids="-".join)
def test_a_component_that_is_not_watched_is_refused(
    sound: tuple[Model, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's heads are left out of the sum."""
    from selfrepair.engine import replay

    model, _ = sound
    see = replay._Changes._see_heads
    monkeypatch.setattr(
        replay._Changes, "_see_heads", lambda self, layer, *args: None if layer == 2 else see(self, layer, *args)
    )
    assert refused(model)


@pytest.mark.parametrize("sound", SOUND, indirect=True, ids="-".join)
def test_a_write_that_is_not_measured_is_refused(sound: tuple[Model, float]) -> None:
    """A hook on the model lets the residual have a little more of the last MLP than the MLP gives."""
    model, _ = sound
    hook_later_mlp(model, 1.01)
    assert refused(model)


@pytest.mark.parametrize("family", CONFIGS)
def test_errors_are_found_beside_massive_activations_too(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 a thousandth of the typical self-repair is found whatever cancels."""
    model = load(massive(family, 1e4, 20.0), "float64")
    typical = float(np.abs(measure(model)["self_repair"]).mean())

    def shift(values: torch.Tensor) -> torch.Tensor:
        return values + typical / 1000

    changed(monkeypatch, "self_repair_from_mlps", shift)
    with pytest.raises(ValueError, match="not the sum of its parts"):
        measure(model)
