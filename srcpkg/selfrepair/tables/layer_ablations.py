"""What follows the ablation of a whole attention or MLP, and how much of it later components and the final norm make up for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import join_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.quantities import HEAD_TOKEN, POSTNORMS, held
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.statistics import ratios, run_weights, with_interval

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
    whole = join_shards(shards, "layer_ablations", n_prompts=run["n_prompts"])
    tokens = {name: whole[name].values[..., run["first_position"] :].astype(float) for name in held(HEAD_TOKEN, whole)}
    tokens["removed"] = tokens["direct_effect"] - tokens["ablated_direct_effect"]
    tokens["compensation"] = np.sum([tokens[part] for part in held(COMPENSATIONS["compensation"], tokens)], axis=0)
    n_components, n_layers, n_prompts, n_pos = tokens["removed"].shape
    weights = run_weights(run)

    def mean(values: np.ndarray) -> np.ndarray:
        """Mean over tokens [resample, component * layer]."""
        sums = values.sum(-1).reshape(-1, n_prompts)
        return ratios(sums, np.full_like(sums, n_pos), weights)

    values = {name: mean(of) for name, of in tokens.items()}
    for name, of in COMPENSATIONS.items():
        y = np.sum([tokens[part] for part in held(of, tokens)], axis=0)
        values[f"slope_{name}"], values[f"r_squared_{name}"] = _regression(tokens["removed"], y, mean)
    component, layer = (at.ravel() for at in np.indices((n_components, n_layers)))
    columns = {
        "component": np.array(["attention", "mlp"])[component],
        "layer": layer,
        "relative_depth": relative_depth(layer, n_layers),
        "n_tokens": n_prompts * n_pos,
        "n_prompts": n_prompts,
    }
    write_table(pd.DataFrame({**columns, **with_interval(values)}), out, {**run, "ablation": "resample"})


def _regression(
    x: np.ndarray, y: np.ndarray, mean: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and R^2 of y on x over tokens; NaN where one of the two does not vary."""
    # Shifting changes neither, and keeps small variances of long values exact.
    x, y = (values - values.mean((2, 3), keepdims=True) for values in (x, y))
    mean_x, mean_y = mean(x), mean(y)
    covariance = mean(x * y) - mean_x * mean_y
    variance_x, variance_y = mean(x**2) - mean_x**2, mean(y**2) - mean_y**2
    varies = (variance_x > 0) & (variance_y > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(varies, covariance / variance_x, np.nan)
        return slope, slope * covariance / variance_y
