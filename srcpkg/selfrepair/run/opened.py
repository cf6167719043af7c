"""A finished run, opened to look at: its tables, its measured files, its prompts as text."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int
from tokenizers import Tokenizer

from selfrepair.files.hdf5 import MADE_BY, heads_of, open_hdf5, open_shards
from selfrepair.files.hdf5_seal import read_attribute
from selfrepair.files.sealed import advice_for, read_json
from selfrepair.files.tables import read_settings, read_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.model.texts import token_texts
from selfrepair.quantities import ABLATION_KINDS, POSTNORMS, SELECTIONS, held
from selfrepair.run.shards import join_shards
from selfrepair.snapshots.encoding import read_encoder
from selfrepair.snapshots.manifest import MANIFEST, verify_manifest
from selfrepair.tables.repair import repair_of_head
from selfrepair.workflow.config import main_kind
from selfrepair.workflow.provenance import identity_of
from selfrepair.workflow.records import PROVENANCE, changed_files, read_record

if TYPE_CHECKING:
    from selfrepair.run.cache import CachedRun
    from selfrepair.run.plot import Plots

BY_KIND = ("ablations", "frozen_layernorm", "neurons")
"""Measured files that each kind of ablation has its own of."""
BY_SHARD = tuple(name for name in MADE_BY if name not in ("tokens", "thresholds", "mean_activations"))
NOT_RUNS = ("snapshots", PROVENANCE, "all_models", "benchmarks")
"""Folders of results/ that hold no runs."""


def find_runs(results: Path) -> list[Path]:
    """Folders of the runs below a folder of results, in the order of their names: those with a table of heads."""
    tables = results.glob("*/*/tables/*/heads.parquet")
    return sorted({table.parents[2] for table in tables if table.parents[3].name not in NOT_RUNS})


def open_run(path: str | Path = "results") -> "Run":
    """Open a finished run.

    Nothing is computed, and what is large is read where it is used. A file counts only if its own provenance says that it is of
    this run: shards and tables that an earlier config left are never mixed in.

    Args:
        path: The run's folder, results/MODEL/CORPUS; or a folder of results, or the one that results/ lies in, with one run.

    Returns:
        The run.

    Raises:
        ValueError: The folder holds no run that has come as far as its table of heads, or several.

    Example:
        >>> import selfrepair
        >>> run = selfrepair.open_run("results")
        >>> run.kinds
        ('resample', 'mean', 'zero')
        >>> best = run.heads().nlargest(1, "self_repair").iloc[0]  # the head whose top tokens are repaired most
        >>> layer, head = int(best["layer"]), int(best["head"])
        >>> tokens = run.tokens(layer, head)
        >>> bool(abs(tokens[tokens["selected"]]["self_repair"].mean() - best["self_repair"]) < 1e-5)
        True
        >>> bool(abs(run.repairs(layer, head)["repair"].sum() - best["self_repair"]) < 1e-5)
        True
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name that of a run, results/MODEL/CORPUS, as `snakemake` makes it")
    found = [folder] if (folder / "tables").is_dir() else find_runs(folder) or find_runs(folder / "results")
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} runs: name one of {', '.join(map(str, found))}")
    if not found or not any((found[0] / "tables" / kind / "heads.parquet").exists() for kind in ABLATION_KINDS):
        raise ValueError(
            f"{folder} holds no run with a table of heads (tables/KIND/heads.parquet): make one with `snakemake`, and name its "
            "folder, results/MODEL/CORPUS"
        )
    return Run(found[0])


class Run:
    """A finished run of one model on one text. Made by `open_run`.

    Each number is in logits, but for shares and scales (docs/definitions.md). Where a method takes a ``kind`` of ablation, None
    means the main one: resample, or the first that the run has.

    Attributes:
        folder: results/MODEL/CORPUS.
        model: The model's name in the config.
        corpus: The text's name in the config.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus, self.model = folder.resolve().name, folder.resolve().parent.name

    def __repr__(self) -> str:
        """Model, text, kinds of ablation and tokens."""
        what = f"{self.model} on {self.corpus}, {', '.join(self.kinds)}"
        return f"<run of {what}: {self.settings['n_tokens']:,} tokens, in {self.folder}>"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of ablation that have a table of heads of this run, the main one first."""
        made = [kind for kind in ABLATION_KINDS if self._table_path("heads", kind).exists()]
        main = main_kind(dict.fromkeys(made))
        return (main, *(kind for kind in made if kind != main and self._foreign("heads", kind, main) is None))

    @property
    def main_kind(self) -> str:
        """The kind that is meant where none is named."""
        return self.kinds[0]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """How the run was made, as its tables carry it: n_prompts, n_tokens, top_fraction, weights, n_bootstrap and others."""
        return dict(read_settings(self._table_path("heads", self.main_kind)))

    # Tables

    def tables(self, kind: str | None = None) -> list[str]:
        """Names of the tables of this run that there are (docs/files.md says what each holds)."""
        kind = self._kind(kind)
        made = sorted(path.stem for path in self._table_path("heads", kind).parent.glob("*.parquet"))
        return [name for name in made if self._foreign(name, kind, self.main_kind) is None]

    def table(self, name: str, kind: str | None = None) -> pd.DataFrame:
        """A table of the run, its settings in ``attrs``.

        Args:
            name: One of `tables`.
            kind: Kind of ablation.

        Raises:
            ValueError: No such table, one that is damaged, or one that another config has left.
        """
        # Layers are resampled in every run, whatever its heads' kinds are.
        kind = kind if kind is not None and self._table_path(name, kind).exists() else self._kind(kind)
        path = self._table_path(name, kind)
        if not path.exists():
            raise ValueError(
                f"there is no table {name!r} of {kind} ablation in {self.folder}: wanted one of {', '.join(self.tables(kind))},"
                f" or make it with `snakemake {path}`"
            )
        if (foreign := self._foreign(name, kind, self.main_kind)) is not None:
            raise ValueError(f"{path} is not of this run ({foreign}): run `snakemake`, which makes anew what is stale")
        return read_table(path)

    def heads(self, kind: str | None = None, selection: str = "top") -> pd.DataFrame:
        """A row a head: means over its tokens, each with its 95% interval in ``_low`` and ``_high``.

        Args:
            kind: Kind of ablation.
            selection: "top" means over each head's top tokens (condensed), "all" over all tokens (full).
        """
        return self._selected("heads", kind, selection)

    def layers(self, kind: str | None = None, selection: str = "top") -> pd.DataFrame:
        """A row a layer: means over its heads, otherwise as `heads`."""
        return self._selected("layers", kind, selection)

    def model_mean(self, kind: str | None = None, selection: str = "top") -> pd.Series:
        """Means over all heads of the model, otherwise as `heads`."""
        return self._selected("model", kind, selection).iloc[0]

    def head(self, layer: int, head: int, kind: str | None = None, selection: str = "top") -> pd.Series:
        """The row of one head in `heads`.

        Raises:
            ValueError: A head that the model has not, or that this kind did not ablate.
        """
        rows = self.heads(kind, selection)
        found = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        if found.empty:
            raise ValueError(f"no head {layer}.{head} {self._which(rows['layer'], rows['head'], self._kind(kind))}")
        return found.iloc[0]

    def repairs(self, layer: int, head: int, kind: str | None = None) -> pd.DataFrame:
        """What repairs a head: a row each later head, each MLP that can change, and the norms.

        Returns:
            Columns ``by`` ("head", "mlp", "postnorms", "layernorm"), ``by_layer``, ``by_head``, and ``repair``, logits a top
            token of the head, with its interval. The rows add up to the head's condensed self-repair.

        Raises:
            ValueError: As `head` and `measured`.
        """
        kind = self._kind(kind)
        of_head = self.head(layer, head, kind)
        shards = self._shards("ablations", kind)
        self._made_of(self._table_path("heads", kind), shards)
        found = repair_of_head((layer, head), shards, self.settings)
        same = ["layer", "head", "n_tokens", "n_prompts"]
        norms = [
            {**of_head[same], "by": part, **{f"repair{end}": of_head[f"{name}{end}"] for end in ("", "_low", "_high")}}
            for part, name in (("postnorms", POSTNORMS), ("layernorm", "self_repair_from_layernorm"))
            if name in of_head.index
        ]
        return pd.concat(
            [found, pd.DataFrame(norms).astype({name: found[name].dtype for name in same})], ignore_index=True
        )

    # Measured files

    def measured(self, name: str, kind: str | None = None) -> xr.Dataset:
        """A measured artefact, whole and lazily: values are read, and their checksums checked, where they are used.

        Args:
            name: "ablations", "activations", "neurons", "frozen_layernorm", "other_donor", "donor_noise", "reinforcement",
                "moved_residual", "layer_ablations", "tokens", "thresholds" or "mean_activations" (docs/files.md).
            kind: Kind of ablation, of those that have one.

        Returns:
            With named dimensions; the shards of the run, and no others, joined along ``prompt`` (``token`` in neurons).

        Raises:
            ValueError: An unknown name, or a file that is missing, damaged, locked, or was made for another run.
        """
        if name not in MADE_BY:
            raise ValueError(f"nothing measured is called {name!r}: wanted one of {', '.join(MADE_BY)}")
        if name in BY_SHARD:
            return join_shards(self._shards(name, self._kind(kind)), name, self.settings["n_prompts"])
        path = self.folder / f"{name}.h5"
        with open_hdf5(path, name) as dataset:
            self.require_current(path)
            # What is as large as the text or the model's heads, not as what was measured.
            found = dataset.isel(prompt=slice(self.settings["n_prompts"])) if name == "tokens" else dataset
            return found.load()

    def ablations(self, kind: str | None = None) -> xr.Dataset:
        """Every (head, token) of a kind of ablation: dims head, prompt and pos, as `selfrepair.ablate_heads` gives them."""
        kind = self._kind(kind)
        self._made_of(self._table_path("heads", kind), self._shards("ablations", kind))
        return self.measured("ablations", kind)

    def tokens(
        self, layer: int, head: int, kind: str | None = None, selection: str = "all", *, texts: bool = True
    ) -> pd.DataFrame:
        """A head's tokens one by one.

        Args:
            layer: The head's layer.
            head: The head.
            kind: Kind of ablation.
            selection: "all" tokens, or the head's "top" tokens alone.
            texts: False leaves out the columns of text, which take most of the time and memory of a large run (`text`).

        Returns:
            A row a (prompt, pos): ``token``, the text of the token there, and ``correct_token``, of the one that follows and is
            predicted; every quantity of docs/definitions.md (NaN where the run computed top tokens alone); ``selected``,
            whether it is one of the head's top tokens.

        Raises:
            ValueError: As `head` and `measured`, or no such selection.
        """
        if selection not in SELECTIONS:
            raise ValueError(f"selection is {selection!r}: wanted one of {', '.join(SELECTIONS)}")
        kind = self._kind(kind)
        shards = self._shards("ablations", kind)
        self._made_of(self._table_path("heads", kind), shards)
        found: dict[str, list[np.ndarray]] = {}
        with open_hdf5(self.folder / "thresholds.h5", "thresholds") as thresholds:
            for dataset, first in open_shards(shards, "ablations", n_prompts=self.settings["n_prompts"]):
                rows = {pair: row for row, pair in enumerate(heads_of(dataset))}
                if (layer, head) not in rows:
                    layers, heads = zip(*rows, strict=True)
                    raise ValueError(f"no head {layer}.{head} {self._which(layers, heads, kind)}")
                one = dataset.isel(head=rows[layer, head])
                here = slice(first, first + one.sizes["prompt"])
                selected = thresholds["top_tokens"][layer, head, here].values.astype(bool)
                counted = selected if selection == "top" else np.ones_like(selected)
                prompt, pos = np.nonzero(counted)
                columns = {"prompt": prompt + first, "pos": pos}
                for name, values in one.data_vars.items():
                    if values.dims == ("prompt", "pos"):
                        columns[str(name)] = values.values[counted]
                for name, part in {**columns, "selected": selected[counted]}.items():
                    found.setdefault(name, []).append(part)
        table = pd.DataFrame({name: np.concatenate(parts) for name, parts in found.items()})
        if texts:
            of_prompt = {prompt: self.text(prompt) for prompt in table["prompt"].unique().tolist()}
            places = list(zip(table["prompt"].tolist(), table["pos"].tolist(), strict=True))
            table.insert(2, "token", [of_prompt[prompt][pos] for prompt, pos in places])
            table.insert(3, "correct_token", [of_prompt[prompt][pos + 1] for prompt, pos in places])
        table.attrs.update(self.settings, ablation=kind, layer=layer, head=head)
        return table

    @cached_property
    def chosen_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads that single-head analyses look at."""
        return read_chosen_heads(self.folder / "chosen_heads.json")

    @property
    def findings(self) -> str:
        """What each figure shows, in words: findings.md.

        Raises:
            ValueError: It is not there, or was edited.
        """
        path = self.folder / "findings.md"
        record = self._record(path)
        if not path.exists() or not record:
            raise ValueError(f"{path} has not been made: run `snakemake findings`")
        if changes := ", ".join(changed_files(path, record, sure=True)):
            raise ValueError(f"{path} is not as it was made ({changes}): run `snakemake findings`")
        return path.read_text(encoding="utf-8")

    # Text

    @cached_property
    def prompts(self) -> Int[np.ndarray, "prompt pos"]:
        """Token ids of the run's prompts."""
        return self.measured("tokens")["tokens"].values

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's snapshot."""
        manifest = self._snapshot / MANIFEST
        verify_manifest(manifest, kind="model", weights=False)
        tokenizer = read_encoder(self._snapshot).tokenizer
        tokenizer.encode_special_tokens = False
        return tokenizer

    def text(self, prompt: int) -> list[str]:
        """A prompt as text, a piece a token; joined, they are the text (`selfrepair.model.texts.token_texts`).

        Raises:
            ValueError: A prompt that the run has not.
        """
        if not 0 <= prompt < len(self.prompts):
            raise ValueError(f"no prompt {prompt}: the run has prompts 0 to {len(self.prompts) - 1}")
        return token_texts(self.tokenizer, self.prompts[prompt])

    # Plots and activations

    @property
    def plot(self) -> "Plots":
        """The figures, each drawn into matplotlib axes: ``run.plot.self_repair_by_layer(ax=ax)``."""
        from selfrepair.run.plot import Plots

        return Plots(self)

    def cache(self, prompts: Sequence[int] | slice | int = slice(None)) -> "CachedRun":
        """Activations of the clean run under TransformerLens's names of hooks, read where they are used.

        Args:
            prompts: Which prompts.

        Raises:
            ValueError: Prompts that the run has not, or a run that let its activations go (`cache.keep: false`).
        """
        from selfrepair.run.cache import cached_run

        return cached_run(self, prompts)

    # What belongs to the run

    @property
    def _results(self) -> Path:
        return self.folder.resolve().parents[1]

    @property
    def _snapshot(self) -> Path:
        return self._results / "snapshots" / "models" / self.model

    def _kind(self, kind: str | None) -> str:
        if kind is None:
            return self.main_kind
        if kind not in self.kinds:
            raise ValueError(f"the run has no {kind!r} ablation: wanted one of {', '.join(self.kinds)}")
        return kind

    def _table_path(self, name: str, kind: str) -> Path:
        return self.folder / "tables" / kind / f"{name}.parquet"

    def _selected(self, name: str, kind: str | None, selection: str) -> pd.DataFrame:
        table = self.table(name, kind)
        if selection not in set(table["selection"]):
            raise ValueError(
                f"{name} of {self._kind(kind)} ablation has no rows of selection {selection!r}: wanted one of "
                f"{', '.join(held(SELECTIONS, set(table['selection'])))}"
            )
        return table[table["selection"] == selection].reset_index(drop=True)

    def _which(self, layers: Any, heads: Any, kind: str) -> str:
        """Which heads a kind ablated, for errors."""
        n_layers, n_heads = (int(self.settings[name]) for name in ("n_layers", "n_heads"))
        held = sorted(set(zip(map(int, layers), map(int, heads), strict=True)))
        some = "" if len(held) == n_layers * n_heads else f", of which {kind} ablated {len(held)}"
        few = (
            f" ({', '.join(f'{layer}.{head}' for layer, head in held[:6])}{', ...' if len(held) > 6 else ''})"
            if some
            else ""
        )
        return f"in this run: the model has layers 0 to {n_layers - 1} of heads 0 to {n_heads - 1}{some}{few}"

    def _foreign(self, name: str, kind: str, main: str) -> str | None:
        """Why a table is not of the run that the main kind's table of heads is of; None where it is."""
        path, heads = self._table_path(name, kind), self._table_path("heads", main)
        if not self._record(path):
            return "no record says how it was made"
        mine, ours = read_settings(path), read_settings(heads)
        # Each kind has a say in which tokens it computes.
        own = {"ablation", "tokens"} if kind != main else {"ablation"}
        for setting in ours:
            if setting not in own and setting in mine and mine[setting] != ours[setting]:
                return f"{setting} is {mine[setting]} in it and {ours[setting]} in {heads}"
        return self._changed(path)

    def _here(self, recorded: str) -> Path:
        """Where a file is now that a record names, below results/ or elsewhere."""
        parts = PurePosixPath(recorded).parts
        places = [at for at, part in enumerate(parts) if part == "results"]
        return self._results.joinpath(*parts[places[-1] + 1 :]) if places else Path(recorded)

    @cached_property
    def _identities(self) -> dict[Path, str]:
        return {}

    def _identity(self, path: Path) -> str:
        if path not in self._identities:
            self._identities[path] = identity_of(path)
        return self._identities[path]

    @cached_property
    def _records_of(self) -> dict[Path, dict[Path, dict[str, Any]]]:
        return {}

    def _record(self, path: Path) -> dict[str, Any]:
        """How a file was made, whichever of its job's files it is; empty where nothing says it."""
        if path.suffix == ".h5":
            return read_record(path)
        folder = path.parent
        if folder not in self._records_of:
            of_files: dict[Path, dict[str, Any]] = {}
            below = folder.resolve().relative_to(self._results)
            for file in sorted((self._results / PROVENANCE / below).glob("*.json")):
                record = read_json(file)
                of_files |= dict.fromkeys((folder / name for name in record.get("outputs", {})), record)
            self._records_of[folder] = of_files
        return self._records_of[folder].get(path, {})

    def _changed(self, path: Path) -> str | None:
        """An input of the run that is no longer the one which a file was made of, shards left alone; None if there is none."""
        for recorded, identity in self._record(path).get("upstream", {}).items():
            input_ = self._here(recorded)
            shard, ours = PurePosixPath(recorded).stem.isdigit(), "results" in PurePosixPath(recorded).parts
            if ours and not shard and input_.exists() and self._identity(input_) != identity:
                return f"{input_} is not the one that it was made of"
        return None

    def require_current(self, path: Path) -> None:
        """Refuse a file that was made of other inputs than the run has now.

        Raises:
            ValueError: It was, with which.
        """
        recorded = path.suffix == ".h5" or self._record(path)
        if (changed := self._changed(path) if recorded else "no record says how it was made") is not None:
            raise ValueError(f"{path} is not of this run ({changed}): run `snakemake`, which makes anew what is stale")

    @cached_property
    def _shard_names(self) -> list[str]:
        """Names of the run's shards: those that its top tokens were found in."""
        path = self.folder / "thresholds.h5"
        upstream = json.loads(read_attribute(path, "provenance", advice_for(path, MADE_BY["thresholds"])))["upstream"]
        return [stem for name in upstream if (stem := PurePosixPath(name).stem).isdigit()]

    def _shards(self, name: str, kind: str) -> list[Path]:
        """Files of the run's shards, each made of what the run has now."""
        folder = self.folder / name / kind if name in BY_KIND else self.folder / name
        paths = [folder / f"{shard}.h5" for shard in self._shard_names]
        if name == "activations" and not paths[0].exists():
            raise ValueError(
                f"{paths[0]} is not there: the run let its activations go (cache.keep: false), or they were removed; "
                f"`snakemake {paths[0]}` makes them again"
            )
        for path in paths:
            if not path.exists():
                raise ValueError(f"{path} does not exist: {advice_for(path, MADE_BY[name])}")
            self.require_current(path)
        return paths

    def _made_of(self, table: Path, shards: Sequence[Path]) -> None:
        """Check that a table was made of these shards, and of no others."""
        recorded = {
            self._here(name): identity
            for name, identity in self._record(table).get("upstream", {}).items()
            if PurePosixPath(name).stem.isdigit()
        }
        found = {path.resolve(): self._identity(path) for path in shards}
        if recorded and {path.resolve(): identity for path, identity in recorded.items()} != found:
            raise ValueError(
                f"the shards in {shards[0].parent} are not those that {table} was made of: run `snakemake`, which makes anew "
                "what is stale"
            )
