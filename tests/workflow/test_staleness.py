"""A result is stale when its inputs, the config values it uses or the package code it runs changed: no more, no less."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import pytest

from selfrepair.files.sealed import read_json
from workflow.running import REPOSITORY, Space

pytestmark = pytest.mark.filterwarnings("error")

NEURON_FIGURES = {"neuron_share", "neuron_concentration", "erasure_neurons", "neuron_consistency"}
NAMES = {
    *("self_repair_by_layer", "effect_vs_logit_change", "token_noise", "repair_breakdown", "layernorm_repair"),
    *("mlp_repair", "layernorm_scale_ratio", "ablation_types", "layernorm_claim", *NEURON_FIGURES),
    *("self_reinforcement", "next_layer_correlation", "who_repairs_whom", "layer_ablation"),
    *("selection_control", "donor_noise", "published_comparison"),
}
# Of runs of several models, which the tiny run is not.
MODELS_FIGURES = {"draw_models_by_layer", "draw_models_and_published"}
OF_ALL_MODELS = {"tabulate_all_models", *MODELS_FIGURES, "write_models_findings"}
FIGURES = {f"draw_{name}" for name in NAMES}
SHOWS = FIGURES | MODELS_FIGURES | {"write_findings", "write_models_findings"}
NEURON_SHARES = {"draw_neuron_share", "draw_neuron_concentration", "draw_neuron_consistency"}
REPAIR_PARTS = {"draw_layernorm_repair", "draw_mlp_repair", "write_findings"}
SNAPSHOTS = {"snapshot_model", "snapshot_corpus"}
LAYERNORM = {
    *("tabulate_layernorm_scale", "tabulate_ablation_type", "tabulate_layernorm_claim", "tabulate_frozen_layernorm")
}
CIRCUITS = {
    *("tabulate_reinforcement", "tabulate_repair", "tabulate_moved_residual", "tabulate_layer_ablations"),
}
CONTROLS = {"tabulate_selection_control", "tabulate_donor_noise", "tabulate_published"}
TABLES = {
    "tabulate_heads",
    "tabulate_token_noise",
    "tabulate_neurons",
    *LAYERNORM,
    *CIRCUITS,
    *CONTROLS,
}
REPLAYS = {"ablate_heads", "freeze_layernorm", "measure_neurons", "ablate_layers", "measure_donor_noise"}
ONE_ATTENTION = {"reinforce_heads", "move_residual"}
OF_SHARD = {*REPLAYS, *ONE_ATTENTION, "project_other_donor"}
# These read which heads were chosen.
TAKES_CHOSEN = {"ablate_heads", "freeze_layernorm", "measure_neurons", "measure_donor_noise", "move_residual"}
TABLES_OF_CHOSEN = {
    "tabulate_token_noise",
    "tabulate_repair",
    "tabulate_donor_noise",
    *LAYERNORM - {"tabulate_layernorm_claim"},
}
# These read ablations with the tokens that count.
COUNTS_TOKENS = {"tabulate_heads", "tabulate_token_noise", "tabulate_repair", *LAYERNORM}
RUNS_THE_MODEL = {"cache_activations", *OF_SHARD}
READS_HDF5 = {
    *("tokenize_corpus", "check_prompts", "find_thresholds", "average_activations"),
    *(RUNS_THE_MODEL | TABLES | {"tabulate_checks"}) - {"tabulate_published"},
}
USES_TABLES = TABLES | SHOWS | TAKES_CHOSEN | OF_ALL_MODELS | {"choose_heads", "tabulate_checks"}
EVERY = SNAPSHOTS | READS_HDF5 | {"choose_heads", "check_published", "tabulate_published"} | SHOWS | OF_ALL_MODELS
READS_SNAPSHOTS = {"tokenize_corpus", "check_prompts", "check_published", "tabulate_heads", *RUNS_THE_MODEL}

# The rules that run each module, and are stale by an edit of it. What is made from their results follows by itself.
USERS: dict[str, set[str]] = {
    **{f"figures/{name}.py": {f"draw_{name}", "write_findings"} for name in NAMES},
    "__init__.py": EVERY,
    "engine/batches.py": REPLAYS,
    "engine/clean.py": RUNS_THE_MODEL,
    "engine/heads.py": OF_SHARD,
    "engine/proof.py": OF_SHARD,
    "engine/replacements.py": OF_SHARD,
    "engine/replay.py": REPLAYS,
    "engine/rounding.py": RUNS_THE_MODEL,
    "engine/single_attention.py": ONE_ATTENTION,
    "engine/sweep.py": {"ablate_heads", "ablate_layers", "measure_donor_noise"},
    "families.py": {"snapshot_model"} | RUNS_THE_MODEL,
    **{f"figures/{name.removeprefix('draw_')}.py": {name, "write_models_findings"} for name in MODELS_FIGURES},
    "figures/findings.py": {"write_findings", "write_models_findings"},
    "figures/shared/distributions.py": {
        *("draw_published_comparison", "write_findings", "draw_models_and_published", "write_models_findings"),
    },
    "figures/shared/kinds.py": {
        *("draw_ablation_types", "draw_layernorm_scale_ratio", "draw_effect_vs_logit_change", "write_findings"),
    },
    "figures/shared/models.py": MODELS_FIGURES | {"write_models_findings"},
    "figures/shared/notes.py": NEURON_SHARES | {"draw_erasure_neurons", "draw_self_reinforcement", "write_findings"},
    "figures/shared/neurons.py": NEURON_SHARES | {"draw_erasure_neurons", "write_findings"},
    "figures/shared/parts.py": {
        *("draw_repair_breakdown", "write_findings", "draw_models_by_layer", "write_models_findings"),
    },
    "figures/shared/repair_part.py": REPAIR_PARTS,
    "figures/shared/token_dots.py": {"draw_token_noise", "draw_ablation_types", "write_findings"},
    "figures/style/footers.py": SHOWS,
    "figures/style/guides.py": SHOWS - NEURON_SHARES - {"draw_layernorm_scale_ratio"},
    "figures/style/inputs.py": SHOWS,
    "figures/style/layout.py": SHOWS,
    "figures/style/looks.py": SHOWS,
    "figures/style/marks.py": {
        *("draw_self_repair_by_layer", "draw_repair_breakdown", "draw_selection_control", "draw_layer_ablation"),
        *("draw_effect_vs_logit_change", "draw_published_comparison", "draw_self_reinforcement", *REPAIR_PARTS),
        *("draw_models_by_layer", "write_models_findings"),
    },
    "figures/style/ranges.py": SHOWS
    - NEURON_SHARES
    - {"draw_who_repairs_whom", "draw_layernorm_claim", "draw_layernorm_scale_ratio"},
    "figures/style/saving.py": SHOWS,
    "figures/wording.py": SHOWS,
    "files/hdf5.py": READS_HDF5,
    "files/sealed.py": EVERY,
    "files/tables.py": USES_TABLES,
    "measure/ablations.py": {"ablate_heads"},
    "measure/activations.py": RUNS_THE_MODEL,
    "measure/chosen_heads.py": {"choose_heads", *TAKES_CHOSEN, *TABLES_OF_CHOSEN},
    "measure/donor_noise.py": {"measure_donor_noise"},
    "measure/frozen_layernorm.py": {"freeze_layernorm"},
    "measure/layer_ablations.py": {"ablate_layers"},
    "measure/mean_activations.py": {"average_activations", *OF_SHARD},
    "measure/moved_residual.py": {"move_residual"},
    "measure/neurons.py": {"measure_neurons"},
    "measure/other_donor.py": {"project_other_donor"},
    "measure/reinforcement.py": {"reinforce_heads"},
    "measure/shard.py": OF_SHARD,
    "measure/thresholds.py": {"find_thresholds"} | OF_SHARD | COUNTS_TOKENS | {"tabulate_selection_control"},
    "measure/tokens.py": {"tokenize_corpus", "check_prompts"} | RUNS_THE_MODEL,
    "model/allocator.py": RUNS_THE_MODEL,
    "model/calls.py": RUNS_THE_MODEL,
    "model/experts.py": RUNS_THE_MODEL,
    # Counts operations for the benchmark and a test.
    "model/flops.py": set(),
    "model/loading.py": RUNS_THE_MODEL,
    "model/model.py": RUNS_THE_MODEL,
    "model/norm.py": RUNS_THE_MODEL,
    "model/observed.py": RUNS_THE_MODEL,
    "model/parts.py": RUNS_THE_MODEL,
    "model/placing.py": RUNS_THE_MODEL,
    "model/precision.py": RUNS_THE_MODEL,
    "model/token_ids.py": {"ablate_heads"},
    "quantities.py": RUNS_THE_MODEL | SHOWS | TABLES - {"tabulate_token_noise"},
    "snapshots/corpora.py": {"snapshot_corpus"},
    "snapshots/encoding.py": {"snapshot_model", "tokenize_corpus", "check_prompts"} | RUNS_THE_MODEL,
    "snapshots/folder.py": {"snapshot_model"} | RUNS_THE_MODEL,
    "snapshots/hub.py": SNAPSHOTS,
    "snapshots/manifest.py": SNAPSHOTS | READS_SNAPSHOTS,
    "snapshots/models.py": {"snapshot_model"},
    "snapshots/names.py": SNAPSHOTS | RUNS_THE_MODEL,
    "snapshots/packages.py": SNAPSHOTS,
    "snapshots/pieces.py": {"snapshot_model"},
    "snapshots/pretokenizers.py": {"snapshot_model"},
    "snapshots/published.py": {"check_published"},
    # Read while the workflow is put together.
    "snapshots/shapes.py": set(),
    "snapshots/sources.py": SNAPSHOTS,
    "snapshots/texts.py": SNAPSHOTS,
    "snapshots/tokenizers.py": {"snapshot_model"},
    "snapshots/weights.py": {"snapshot_model"} | RUNS_THE_MODEL,
    "snapshots/wikitext.py": {"snapshot_corpus"},
    "tables/ablation_type.py": {"tabulate_ablation_type"},
    "tables/all_models.py": {"tabulate_all_models"},
    "tables/checks.py": {"tabulate_checks"},
    "tables/columns.py": {
        *("tabulate_heads", "tabulate_layernorm_scale", "tabulate_frozen_layernorm", "tabulate_reinforcement"),
        *("tabulate_layer_ablations", "tabulate_all_models", *CONTROLS),
    },
    "tables/counted_tokens.py": COUNTS_TOKENS,
    "tables/donor_noise.py": {"tabulate_donor_noise"},
    "tables/frozen_layernorm.py": {"tabulate_frozen_layernorm"},
    "tables/heads.py": {"tabulate_heads"},
    "tables/layer_ablations.py": {"tabulate_layer_ablations"},
    "tables/layernorm_claim.py": {"tabulate_layernorm_claim"},
    "tables/layernorm_scale.py": {"tabulate_layernorm_scale"},
    "tables/moved_residual.py": {"tabulate_moved_residual"},
    "tables/neurons.py": {"tabulate_neurons"},
    "tables/noise.py": {"tabulate_heads"},
    "tables/published.py": {"tabulate_published"},
    "tables/reinforcement.py": {"tabulate_reinforcement"},
    "tables/repair.py": {"tabulate_repair"},
    "tables/selection_control.py": {"tabulate_selection_control"},
    "tables/statistics.py": {*TABLES - {"tabulate_token_noise"}, "draw_token_noise", "write_findings"},
    "tables/token_noise.py": {"tabulate_token_noise"},
    # Used while the workflow is put together; what it gives reaches jobs as params.
    "workflow/command.py": set(),
    "workflow/config.py": set(),
    "workflow/jobs.py": EVERY,
    "workflow/machine.py": EVERY,
    "workflow/plan.py": set(),
    "workflow/progress.py": EVERY,
    "workflow/provenance.py": EVERY,
    # What a job may take changes nothing that it makes.
    "workflow/resources.py": set(),
    "workflow/schema.py": set(),
}
# A folder's own file is run by whatever runs a module in it.
for _folder in {str(folder) for module in USERS for folder in PurePosixPath(module).parents if folder.name}:
    USERS[f"{_folder}/__init__.py"] = set().union(*(USERS[at] for at in USERS if at.startswith(f"{_folder}/")))


def drawn(*names: str) -> dict[str, int]:
    """The jobs that show some figures."""
    return {**{f"draw_{name}": 1 for name in names}, "write_findings": 1}


# Jobs of the tiny run: three kinds of ablation on two shards.
DRAWN = drawn(*NAMES)
FROZEN = {"freeze_layernorm": 2, "tabulate_frozen_layernorm": 1}
CHECKS = {"tabulate_checks": 1, "write_findings": 1}
NEURONS = {"measure_neurons": 2, **CHECKS, "tabulate_neurons": 1, **drawn(*NEURON_FIGURES)}
MOVED = {"move_residual": 2, **CHECKS, "tabulate_moved_residual": 1, **drawn("next_layer_correlation")}
OF_CHOSEN = {
    **{"choose_heads": 1, "tabulate_token_noise": 1, "tabulate_layernorm_scale": 3, "tabulate_ablation_type": 3},
    **{"measure_donor_noise": 2, "tabulate_donor_noise": 1, "tabulate_repair": 1},
    **{**FROZEN, **NEURONS, **MOVED},
    **drawn("token_noise", "layernorm_scale_ratio", "ablation_types", "layernorm_claim", "donor_noise"),
    **drawn("who_repairs_whom"),
}
CONDENSED = {
    **{"tabulate_heads": 3, "tabulate_layernorm_claim": 1, "tabulate_selection_control": 1, "tabulate_published": 1},
    **{"tabulate_reinforcement": 1, "tabulate_layer_ablations": 1, **CHECKS},
    **{**OF_CHOSEN, **DRAWN},
}
SELECTED = {"find_thresholds": 1, "ablate_heads": 6, "reinforce_heads": 2, **CONDENSED}
# Of every replay but those of the chosen heads, which follow the ablations.
REPLAYED = {"ablate_heads": 6, "ablate_layers": 2, **CONDENSED}
OPENED = {**REPLAYED, "project_other_donor": 2, "reinforce_heads": 2}
FROM_ACTIVATIONS = {"cache_activations": 2, "average_activations": 1, **SELECTED, **OPENED}
FROM_TOKENS = {"tokenize_corpus": 1, "check_prompts": 1, **FROM_ACTIVATIONS}
FROM_MODEL = {"snapshot_model": 1, "check_published": 1, **FROM_TOKENS}
FROM_CORPUS = {"snapshot_corpus": 1, **FROM_TOKENS}
FROM_SNAPSHOTS = {**FROM_MODEL, **FROM_CORPUS}

PACKAGE = REPOSITORY / "srcpkg" / "selfrepair"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def space(finished: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """A finished run; every test puts back what it edits."""
    copied = finished.copy(tmp_path_factory.mktemp("staleness") / "space")
    assert copied.jobs() == {}
    return copied


@contextmanager
def configured(space: Space, path: str, value: Any) -> Iterator[None]:
    kept = space.config
    try:
        space.change(path, value)
        yield
    finally:
        space.write_config(kept)


@contextmanager
def appended(space: Space, module: str, text: str) -> Iterator[None]:
    content = (space.package / module).read_text(encoding="utf-8")
    with space.edited(space.package / module, content or "", content + text):
        yield


def test_every_module_is_listed() -> None:
    assert sorted(USERS) == MODULES


SCRIPTS = sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def digests(space: Space) -> dict[str, dict[str, str]]:
    """The code digest of every rule, as it is and after an edit of each module and script."""
    modules = {module: (space.package / module, "", "\n_EDITED = True\n") for module in MODULES}
    scripts = {
        name: (space.repo / "scripts" / f"{name}.py", "from pathlib", "import math\nfrom pathlib") for name in SCRIPTS
    }
    found = space.digests({**modules, **scripts})
    assert all(set(of_rules) == EVERY for of_rules in found.values())
    return found


def changed(digests: dict[str, dict[str, str]], edited: str) -> set[str]:
    return {rule for rule, digest in digests[edited].items() if digest != digests[""][rule]}


def test_the_code_of_every_rule_is_a_param_of_it(space: Space, digests: dict[str, dict[str, str]]) -> None:
    """What the digests below show holds for Snakemake."""
    recorded = space.recorded_params()
    assert set(recorded) == EVERY - OF_ALL_MODELS
    for rule in recorded:
        assert repr(digests[""][rule]) in recorded[rule], rule


@pytest.mark.parametrize("module", MODULES)
def test_an_edit_of_a_module_changes_the_code_of_what_runs_it(digests: dict[str, dict[str, str]], module: str) -> None:
    assert changed(digests, module) == USERS[module]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_edit_of_a_script_changes_the_code_of_its_rule(digests: dict[str, dict[str, str]], script: str) -> None:
    assert changed(digests, script) == (FIGURES | MODELS_FIGURES if script == "draw_figure" else {script})


@pytest.mark.parametrize(
    ("module", "jobs"),
    [
        ("workflow/config.py", {}),
        ("figures/token_noise.py", drawn("token_noise")),
        ("tables/neurons.py", {"tabulate_neurons": 1, **drawn(*NEURON_FIGURES)}),
        ("figures/style/looks.py", DRAWN),
        ("tables/statistics.py", CONDENSED),
        ("measure/mean_activations.py", {"average_activations": 1, **OPENED}),
        ("engine/replay.py", REPLAYED),
        ("measure/moved_residual.py", MOVED),
        ("measure/activations.py", FROM_ACTIVATIONS),
        ("workflow/jobs.py", FROM_SNAPSHOTS),
    ],
)
def test_snakemake_runs_what_an_edit_makes_stale_and_what_follows(
    space: Space, module: str, jobs: dict[str, int]
) -> None:
    with appended(space, module, "\n_EDITED = True\n"):
        assert space.jobs() == jobs


def test_comments_docstrings_and_layout_make_nothing_stale(finished: Space, tmp_path) -> None:
    space = finished.copy(tmp_path / "space")
    edited = 0
    for path in [*space.package.rglob("*.py"), *(space.repo / "scripts").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if text:
            # A new docstring, a comment, empty lines; a blank line after each line of code that ends a statement with ")".
            edited += 1
            text = text.replace('"""', '"""Also: ', 1).replace("\n    return ", "\n\n    # A remark.\n    return ")
            path.write_text(f"{text}\n\n# The end.\n", encoding="utf-8")
    for path in [space.repo / "Snakefile", *(space.repo / "rules").glob("*.smk")]:
        path.write_text(path.read_text(encoding="utf-8") + "\n\n# The end.\n", encoding="utf-8")
    assert edited > 35
    assert space.jobs() == {}


@pytest.mark.parametrize(
    ("path", "value", "jobs"),
    [
        ("statistics.n_bootstrap", 60, CONDENSED),
        ("statistics.bootstrap_seed", 1, CONDENSED),
        # Ablations too: who repairs whom is summed over top tokens.
        ("statistics.top_fraction", 0.2, SELECTED),
        ("statistics.first_position", 1, SELECTED),
        (
            "analyses.heads",
            [[0, 1]],
            OF_CHOSEN,
        ),
        ("analyses.neuron_layer", 1, NEURONS),
        ("analyses.top_neurons", 20, NEURONS),
        (
            "analyses.reinforcement_scales",
            [2],
            {"reinforce_heads": 2, **CHECKS, "tabulate_reinforcement": 1, **drawn("self_reinforcement")},
        ),
        (
            "analyses.noise_donors",
            2,
            {"measure_donor_noise": 2, **CHECKS, "tabulate_donor_noise": 1, **drawn("donor_noise")},
        ),
        (
            "ablations.zero.heads",
            [[0, 1], [1, 1]],
            # Zero ablation leaves the figures that show the chosen heads under each kind.
            {
                **{"ablate_heads": 2, "tabulate_heads": 1, **CHECKS},
                **drawn("effect_vs_logit_change", "layernorm_scale_ratio", "ablation_types"),
            },
        ),
        ("compute.dtype", "float64", FROM_ACTIVATIONS),
        ("compute.center_unembed", False, FROM_ACTIVATIONS),
        ("cache.keep", False, {}),
        ("tokens.seed", 1, FROM_TOKENS),
        ("models.tiny.weights", "random", FROM_MODEL),
        ("corpora.words.documents", 4, FROM_CORPUS),
    ],
)
def test_a_config_value_makes_stale_what_uses_it_and_what_follows(
    space: Space, path: str, value: Any, jobs: dict[str, int]
) -> None:
    with configured(space, path, value):
        assert space.jobs() == jobs


def test_the_published_model_makes_stale_what_is_compared_with_it(space: Space) -> None:
    """Where its facts are the tiny model's; another name is refused (test_errors)."""
    facts = space.repo / "resources" / "published" / "models.json"
    tiny = json.loads((space.work / "model" / "config.json").read_text(encoding="utf-8"))
    known = json.loads(facts.read_text(encoding="utf-8"))
    known["gpt2-small"]["config"] = {key: tiny[key] for key in ("model_type", "hidden_size", "vocab_size")}
    text, digest = json.dumps(known), facts.with_name("models.json.sha256")
    listed = f"{hashlib.sha256(text.encode()).hexdigest()}  models.json\n"
    edited = space.edited(facts, facts.read_text(encoding="utf-8"), text)
    sealed = space.edited(digest, digest.read_text(encoding="utf-8"), listed)
    with edited, sealed, configured(space, "models.tiny.published", "gpt2-small"):
        assert space.jobs() == {"check_published": 1, "tabulate_published": 1, **drawn("published_comparison")}


def test_how_large_a_model_is_said_to_be_makes_nothing_stale(space: Space) -> None:
    sizes = {"layers": 2, "heads": 4, "kv_heads": 2, "d_model": 16, "d_mlp": 32, "vocabulary": 9, "gated": True}
    with configured(space, "models.tiny.shape", sizes):
        assert space.jobs() == {}


def test_values_of_models_and_texts_that_do_not_run_change_nothing(space: Space) -> None:
    with configured(space, "models.another", {"source": "path:elsewhere"}):
        assert space.jobs() == {}


def test_more_prompts_keep_finished_shards(finished: Space, tmp_path) -> None:
    """Ablations run again by design: who repairs whom is summed over top tokens, and these change with the prompts."""
    space = finished.copy(tmp_path / "space")
    space.change("tokens.prompts", 12)
    jobs = space.jobs()
    assert {rule: jobs[rule] for rule in ("tokenize_corpus", "check_prompts", "cache_activations", "ablate_heads")} == {
        "tokenize_corpus": 0,
        "check_prompts": 1,
        "cache_activations": 1,
        "ablate_heads": 9,
    }
    shards = sorted((space.run / "activations").glob("*.h5"))
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
    space.make(str((space.run / "thresholds.h5").relative_to(space.work)))
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
    assert after == before
    assert sorted(path.name for path in (space.run / "activations").glob("*.h5")) == [
        "00000.h5",
        "00001.h5",
        "00002.h5",
    ]
    assert read_json(space.run / "prompts.json") == {"asked": 12, "held": 16}


def test_fewer_prompts_recompute_no_shard(space: Space) -> None:
    with configured(space, "tokens.prompts", 4):
        jobs = space.jobs()
        assert jobs["cache_activations"] == 0
        assert jobs["find_thresholds"] == 1


@pytest.mark.parametrize(("file", "rule"), [("model/config.json", "snapshot_model"), ("text/0.txt", "snapshot_corpus")])
def test_an_edit_of_the_users_own_files_makes_the_snapshot_stale(space: Space, file: str, rule: str) -> None:
    path = space.work / file
    text = path.read_text(encoding="utf-8")
    with space.edited(path, text, f"{text}\n"):
        jobs = space.jobs()
        assert jobs[rule] == 1
        assert jobs["tokenize_corpus"] == 1
        assert jobs["snapshot_model"] + jobs["snapshot_corpus"] == 1
    assert space.jobs() == {}


def test_a_new_text_makes_the_snapshot_stale(space: Space) -> None:
    """Whatever else is read or not: test_sources."""
    path = space.work / "text" / "new.txt"
    path.write_text("the cat sat .", encoding="utf-8")
    try:
        assert space.jobs()["snapshot_corpus"] == 1
    finally:
        path.unlink()
