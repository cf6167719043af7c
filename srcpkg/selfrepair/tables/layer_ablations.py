"""What follows the ablation of a whole attention or MLP, and how much of it later components and the final norm make up for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from selfrepair.files.hdf5 import open_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.quantities import HEAD_TOKEN, POSTNORMS, held
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.statistics import Resamples, Totals, prompt_sums, with_interval

COMPENSATIONS = {
    "compensation": ("self_repair_from_heads", "self_repair_from_mlps", POSTNORMS),
    "layernorm": ("self_repair_from_layernorm",),
    "self_repair": ("self_repair",),
}
"""What is regressed on the removed direct effect: later components with post-norms, the final norm, and all."""


def tabulate_layer_ablations(*, shards: Sequence[Path], heads_table: Path, out: Path) -> None:
    """Write what follows the ablation of a layer's attention or MLP, a row a component and layer, over all tokens.

    Args:
        shards: Layer ablations files in the order of their prompts.
        heads_table: Table "heads" of the run; its settings are taken over.
        out: Parquet file; a CSV is written beside it. Means of each quantity; ``removed`` = direct effect - ablated direct
            effect; ``compensation`` = changes of later heads and MLPs, and what post-norms make of them; ``slope_X`` and
            ``r_squared_X`` of the regression over tokens of X on ``removed``, X being compensation, layernorm or self_repair.
    """
    run = read_settings(heads_table)
    totals = Totals(Resamples.of_run(run))
    centres: dict[str, np.ndarray] = {}
    for dataset, _ in open_shards(shards, "layer_ablations", n_prompts=run["n_prompts"]):
        names = held(HEAD_TOKEN, dataset)
        tokens = {name: dataset[name].values[..., run["first_position"] :].astype(float) for name in names}
        tokens["removed"] = tokens["direct_effect"] - tokens["ablated_direct_effect"]
        for name, parts in COMPENSATIONS.items():
            tokens[name] = np.sum([tokens[part] for part in held(parts, tokens)], axis=0)
        if not centres:
            centres = {name: tokens[name].mean((2, 3), keepdims=True) for name in ("removed", *COMPENSATIONS)}
        sums = prompt_sums({**tokens, **moments(tokens, centres)}, np.ones(tokens["removed"].shape, bool))
        n_components, n_layers, n_prompts = sums["removed"].shape
        totals.add({name: of.reshape(-1, n_prompts) for name, of in sums.items()})
    values = {name: totals.mean(name) for name in (*names, "removed", "compensation")}
    for name in COMPENSATIONS:
        values[f"slope_{name}"], values[f"r_squared_{name}"] = regression(totals, name)
    component, layer = (at.ravel() for at in np.indices((n_components, n_layers)))
    columns = {
        "component": np.array(["attention", "mlp"])[component],
        "layer": layer,
        "relative_depth": relative_depth(layer, n_layers),
        "n_tokens": totals.n_tokens,
        "n_prompts": run["n_prompts"],
    }
    write_table(pd.DataFrame({**columns, **with_interval(values)}), out, {**run, "ablation": "resample"})


def moments(
    tokens: Mapping[str, Float[np.ndarray, "component layer prompt predicted"]],
    centres: Mapping[str, Float[np.ndarray, "component layer one one"]],
) -> dict[str, Float[np.ndarray, "component layer prompt predicted"]]:
    """What `regression` needs the means of: ``removed`` and each of `COMPENSATIONS`, their squares and products.

    Args:
        tokens: Values of each token, logits.
        centres: About where the values lie, the same for all shards: what is near zero keeps all its digits.
    """
    about = {name: tokens[name] - centre for name, centre in centres.items()}
    found: dict[str, np.ndarray] = {}
    for name, value in about.items():
        found |= {
            f"{name} centred": value,
            f"{name} squared": value**2,
            f"{name} times removed": value * about["removed"],
        }
    return found


def regression(
    totals: Totals, name: str
) -> tuple[Float[np.ndarray, "resample row"], Float[np.ndarray, "resample row"]]:
    """Slope and R^2 of a value on ``removed`` over tokens, from means of their `moments`; NaN where one does not vary."""
    mean_x, mean_y = totals.mean("removed centred"), totals.mean(f"{name} centred")
    covariance = totals.mean(f"{name} times removed") - mean_x * mean_y
    variance_x = totals.mean("removed squared") - mean_x**2
    variance_y = totals.mean(f"{name} squared") - mean_y**2
    varies = (variance_x > 0) & (variance_y > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(varies, covariance / variance_x, np.nan)
        return slope, slope * covariance / variance_y
