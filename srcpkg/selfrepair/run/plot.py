"""A run's figures in matplotlib axes: ``run.plot.self_repair_by_layer(ax=ax)``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from selfrepair.figures import catalogue
from selfrepair.figures.plotting import panel_names, plot_figure
from selfrepair.files.tables import read_table

if TYPE_CHECKING:
    from selfrepair.run.opened import Run

RELEASE = Path("resources", "published", "self_repair_by_head.csv")
"""The paper's values, in the folder that results/ lies in or that the package was installed from."""


class Plots:
    """The figures of a run, a method each, drawn into matplotlib axes.

    One convention holds for all of them. `ax` is one axes for a figure of one panel, and an array of as many axes as there are
    panels for the others; or one axes, with `panel` the name of the panel to draw (`panels`). Without `ax` a figure is made.
    `ax`, or what was made, is returned: one axes for one panel, else an array. `kind` is the kind of ablation, by default the
    main one; a figure with a panel a kind then shows that kind alone. matplotlib's settings are left as they were.

    Raises:
        ValueError: Another number of axes, an unknown panel or kind, or a table that the run does not have.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run

    def __repr__(self) -> str:
        """The figures that there are to draw."""
        of_models = catalogue.OF_MODELS if self._folder_of_models(self._run.main_kind).is_dir() else ()
        return f"<plots of {self._run!r}: {', '.join((*catalogue.CATALOGUE, *of_models))}>"

    def panels(self, figure: str, *, kind: str | None = None) -> list[str]:
        """Names of a figure's panels, in their order.

        Args:
            figure: The figure's name, which is that of its method.
            kind: Kind of ablation.
        """
        return panel_names(figure, self._tables(figure, kind))

    def self_repair_by_layer(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Self-repair against relative depth: a dot a head, the layers' means, and those of the published models.

        One panel.
        """
        return self._draw("self_repair_by_layer", ax, panel, kind)

    def repair_breakdown(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """What repairs in each layer: heads, MLPs, post-norms and LayerNorm, beside the effects.

        Panels "parts" and "effects".
        """
        return self._draw("repair_breakdown", ax, panel, kind)

    def layernorm_repair(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """The final norm's part of self-repair against relative depth.

        Panels "logits" and "fraction", the share of the direct effect.
        """
        return self._draw("layernorm_repair", ax, panel, kind)

    def mlp_repair(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """The MLPs' part of self-repair against relative depth.

        Panels "logits" and "fraction", the share of the direct effect.
        """
        return self._draw("mlp_repair", ax, panel, kind)

    def published_comparison(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Heads against the published values, or, of another model, their distributions side by side.

        Six panels, named as the quantities of the paper.
        """
        return self._draw("published_comparison", ax, panel, kind)

    def effect_vs_logit_change(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Direct effect against logit change over all tokens, a dot a head.

        A panel a kind of ablation.
        """
        return self._draw("effect_vs_logit_change", ax, panel, kind)

    def token_noise(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Direct effect against logit change, a dot a token.

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("token_noise", ax, panel, kind)

    def layernorm_scale_ratio(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """How ablation changes the scale of the final norm.

        A panel a kind of ablation, and "shares".
        """
        return self._draw("layernorm_scale_ratio", ax, panel, kind)

    def ablation_types(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """One head under each kind of ablation: its tokens, and the norm of the final residual.

        A panel a kind of ablation, and "norms".
        """
        return self._draw("ablation_types", ax, panel, kind)

    def layernorm_claim(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """LayerNorm's share of the direct effect in each of its readings, and the logit change with the scale really frozen.

        Panels "readings" and "frozen".
        """
        return self._draw("layernorm_claim", ax, panel, kind)

    def selection_control(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Self-repair on tokens chosen otherwise than by direct effect.

        Panels "by_layer", "pooled_repair_fraction" and "repair_slope".
        """
        return self._draw("selection_control", ax, panel, kind)

    def donor_noise(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Self-repair of each top token with several donors.

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("donor_noise", ax, panel, kind)

    def self_reinforcement(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """A head's direct effect when its own output is added to its input, against controls.

        Panels "heads", and one a head of the largest changes, named as it is ("L27H8").
        """
        return self._draw("self_reinforcement", ax, panel, kind)

    def next_layer_correlation(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """The next layer's heads: changes by an ablated head against those by a skipped layer.

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("next_layer_correlation", ax, panel, kind)

    def who_repairs_whom(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Which heads and MLPs repair which ablated heads, and the strongest pairs.

        Panels "by_heads", "by_mlps", one a chosen head, named as it is ("L26H8"), "pairs_heads" and "pairs_mlps".
        """
        return self._draw("who_repairs_whom", ax, panel, kind)

    def layer_ablation(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """What later components make up for when a whole attention or MLP is ablated (the Hydra effect).

        Panels "slope", "r_squared", "attention" and "mlp".
        """
        return self._draw("layer_ablation", ax, panel, kind)

    def neuron_share(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """How often the Nth best neuron repairs more than some share of a head's direct effect.

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("neuron_share", ax, panel, kind)

    def neuron_concentration(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """On how few neurons the change of the MLP is concentrated.

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("neuron_concentration", ax, panel, kind)

    def neuron_consistency(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Whether the same neurons repair on every token.

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("neuron_consistency", ax, panel, kind)

    def erasure_neurons(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Whether the neuron that repairs most does so by erasing less (Anti-Erasure).

        A panel a chosen head, named as it is ("L26H8").
        """
        return self._draw("erasure_neurons", ax, panel, kind)

    def models_by_layer(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Self-repair of all models of a run of several against relative depth.

        One panel.
        """
        return self._draw("models_by_layer", ax, panel, kind)

    def models_and_published(self, ax: Any = None, *, panel: str | None = None, kind: str | None = None) -> Any:
        """Distributions over heads of all models of a run of several, beside the published ones.

        Six panels, named as the quantities of the paper.
        """
        return self._draw("models_and_published", ax, panel, kind)

    def _draw(self, figure: str, ax: Any, panel: str | None, kind: str | None) -> Any:
        return plot_figure(figure, self._tables(figure, kind), ax, panel)

    def _tables(self, figure: str, kind: str | None) -> dict[str, pd.DataFrame]:
        run = self._run
        if kind is not None and kind not in run.kinds:
            raise ValueError(f"the run has no {kind!r} ablation: wanted one of {', '.join(run.kinds)}")
        if figure in catalogue.OF_MODELS:
            return self._of_models(figure, kind)
        if figure not in catalogue.CATALOGUE:
            raise ValueError(f"no figure {figure!r}: choose one of {', '.join(catalogue.CATALOGUE)}")
        entry = catalogue.CATALOGUE[figure]
        kinds = entry.kinds(self._asked())
        if kind is not None and entry.kinds is catalogue.of_resampling and kind not in kinds:
            raise ValueError(f"{figure} is of {', '.join(kinds)} ablation alone: leave kind out")
        if kind is not None:
            kinds = [kind]
        elif entry.by_kind:
            # Which heads a kind was asked for, chosen ones or a list, no table says: what was made of it is there.
            kinds = [of for of in kinds if all(path.exists() for path in self._paths(entry, of))]
        if not kinds:
            raise ValueError(
                f"the run has no {figure}: its {run.main_kind} ablation computed each head's top tokens alone"
            )
        tables = {
            key: run.table(name, of) for key, (name, of) in entry.of(kinds).items() if name != catalogue.PUBLISHED
        }
        if catalogue.PUBLISHED in entry.tables.values() and (release := self._release()) is not None:
            tables[catalogue.PUBLISHED] = read_table(release)
        return tables

    def _paths(self, entry: catalogue.Entry, kind: str) -> list[Path]:
        """Files of the tables that a figure is made from, of one kind of ablation."""
        return [self._run.folder / "tables" / of / f"{name}.parquet" for name, of in entry.of([kind]).values()]

    def _asked(self) -> catalogue.Asked:
        """What the run was asked for, as its tables have it; donors as if there were enough, since a table is there or not."""
        run = self._run
        heads, computed = {}, {}
        chosen = set(run.chosen_heads) if (run.folder / "chosen_heads.json").exists() else set()
        for kind in run.kinds:
            table = run.table("heads", kind)
            of_kind = set(zip(table["layer"], table["head"], strict=True))
            heads[kind] = "chosen" if kind != run.main_kind and of_kind == chosen else "all"
            computed[kind] = "all" if (table["selection"] == "all").any() else "top"
        return catalogue.Asked(run.main_kind, heads, computed, donors=1, others=2, noise_donors=2)

    def _release(self) -> Path | None:
        places = (self._run.folder.resolve().parents[2], Path(__file__).parents[3])
        return next((place / RELEASE for place in places if (place / RELEASE).exists()), None)

    def _folder_of_models(self, kind: str) -> Path:
        run = self._run
        return run.folder.resolve().parents[1] / "all_models" / run.corpus / "tables" / kind

    def _of_models(self, figure: str, kind: str | None) -> dict[str, pd.DataFrame]:
        run = self._run
        if kind not in (None, run.main_kind):
            raise ValueError(f"{figure} is of {run.main_kind} ablation alone: leave kind out")
        folder = self._folder_of_models(run.main_kind)
        files = {key: folder / f"{name}.parquet" for key, name in catalogue.OF_MODELS[figure].tables.items()}
        if missing := [path for path in files.values() if not path.exists()]:
            raise ValueError(f"{missing[0]} is not there: a run of several models makes it (run.models in the config)")
        tables = {key: read_table(path) for key, path in files.items()}
        for key, path in files.items():
            if run.model not in (models := tables[key].attrs["model"]):
                raise ValueError(
                    f"{path} is of {', '.join(models)}: name {run.model} in run.models too, and run `snakemake`"
                )
            run.require_current(path)
        return tables
