"""A result is stale when its inputs, the config values it uses or the package code it runs changed: no more, no less."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from workflow.running import REPOSITORY, Space

pytestmark = pytest.mark.filterwarnings("error")

FIGURES = {
    "draw_effect_vs_logit_change",
    "draw_layer_ablation",
    "draw_layernorm_repair",
    "draw_mlp_repair",
    "draw_next_layer_correlation",
    "draw_repair_breakdown",
    "draw_self_reinforcement",
    "draw_self_repair_by_layer",
    "draw_token_noise",
    "draw_who_repairs_whom",
}
SNAPSHOTS = {"snapshot_model", "snapshot_corpus"}
CIRCUIT_TABLES = {
    *("condense_reinforcement", "tabulate_repair", "condense_traced_repair", "correlate_next_layer"),
    "condense_layer_ablation",
}
TABLES = {"condense_ablations", "tabulate_tokens", *CIRCUIT_TABLES}
REPLAYS = {"ablate_heads", "trace_repair", "ablate_layers"}
ONE_ATTENTION = {"reinforce_heads", "move_residual"}
RUNS_THE_MODEL = {"cache_activations", *REPLAYS, *ONE_ATTENTION}
READS_HDF5 = {
    *("tokenize_corpus", "check_prompts", "select_top_tokens", "average_activations"),
    *(RUNS_THE_MODEL | TABLES),
}
SHOWS = FIGURES | {"write_findings"}
EVERY = SNAPSHOTS | READS_HDF5 | {"choose_heads"} | SHOWS
READS_SNAPSHOTS = {"tokenize_corpus", "check_prompts", *RUNS_THE_MODEL, *TABLES}

# The rules that run each module, and are stale by an edit of it. What is made from their results follows by itself.
USERS = {
    "__init__.py": EVERY,
    "ablation.py": REPLAYS,
    "activations.py": RUNS_THE_MODEL,
    "averages.py": {"average_activations", *REPLAYS},
    "chosen_heads.py": {"choose_heads", "ablate_heads", "trace_repair", "move_residual", *TABLES},
    "circuit_tables.py": CIRCUIT_TABLES,
    "clean.py": RUNS_THE_MODEL,
    # Used while the workflow is put together; what it gives reaches jobs as params.
    "config.py": set(),
    "families.py": RUNS_THE_MODEL | TABLES,
    "figures/__init__.py": SHOWS,
    "figures/effect_vs_logit_change.py": {"draw_effect_vs_logit_change", "write_findings"},
    "figures/layer_ablation.py": {"draw_layer_ablation", "write_findings"},
    "figures/layernorm_repair.py": {"draw_layernorm_repair", "write_findings"},
    "figures/mlp_repair.py": {"draw_mlp_repair", "write_findings"},
    "figures/next_layer_correlation.py": {"draw_next_layer_correlation", "write_findings"},
    "figures/repair_breakdown.py": {"draw_repair_breakdown", "write_findings"},
    "figures/self_reinforcement.py": {"draw_self_reinforcement", "write_findings"},
    "figures/self_repair_by_layer.py": {"draw_self_repair_by_layer", "write_findings"},
    "figures/style.py": SHOWS,
    "figures/token_noise.py": {"draw_token_noise", "write_findings"},
    "figures/who_repairs_whom.py": {"draw_who_repairs_whom", "write_findings"},
    "findings.py": {"write_findings"},
    # Counts operations for the benchmark and a test.
    "flops.py": set(),
    "jobs.py": EVERY,
    "layer_ablation.py": {"ablate_layers"},
    "models.py": RUNS_THE_MODEL,
    "next_layer.py": {"move_residual"},
    "progress.py": EVERY,
    "provenance.py": EVERY,
    "quantities.py": REPLAYS | TABLES | SHOWS,
    "reinforcement.py": {"reinforce_heads"},
    "replay.py": REPLAYS,
    "selection.py": {"select_top_tokens"} | REPLAYS | ONE_ATTENTION | TABLES,
    "single_attention.py": ONE_ATTENTION,
    "snapshots/__init__.py": SNAPSHOTS | READS_SNAPSHOTS,
    "snapshots/corpora.py": {"snapshot_corpus"},
    "snapshots/hub.py": SNAPSHOTS,
    "snapshots/manifest.py": SNAPSHOTS | READS_SNAPSHOTS,
    "snapshots/models.py": {"snapshot_model"},
    "snapshots/packages.py": SNAPSHOTS,
    "snapshots/sources.py": SNAPSHOTS,
    "snapshots/wikitext.py": {"snapshot_corpus"},
    "statistics.py": TABLES | {"draw_token_noise", "write_findings"},
    "storage.py": READS_HDF5,
    "strongest_pairs.py": CIRCUIT_TABLES | {"trace_repair"},
    "tables.py": TABLES,
    "tokens.py": {"tokenize_corpus", "check_prompts"} | RUNS_THE_MODEL,
    "traced_repair.py": {"trace_repair"},
    "wording.py": SHOWS,
}

# Jobs of the tiny run: three kinds of ablation on two shards.
DRAWN = dict.fromkeys(SHOWS, 1)
OF_CHOSEN = {
    **{"choose_heads": 1, "tabulate_tokens": 1, "trace_repair": 2, "condense_traced_repair": 1},
    **{"move_residual": 2, "correlate_next_layer": 1},
}
CONDENSED = {
    **{"condense_ablations": 3, "condense_reinforcement": 1, "tabulate_repair": 1, "condense_layer_ablation": 1},
    **OF_CHOSEN,
    **DRAWN,
}
SELECTED = {"select_top_tokens": 1, "ablate_heads": 6, "reinforce_heads": 2, **CONDENSED}
FROM_ACTIVATIONS = {"cache_activations": 2, "average_activations": 1, "ablate_layers": 2, **SELECTED}
FROM_TOKENS = {"tokenize_corpus": 1, "check_prompts": 1, **FROM_ACTIVATIONS}
FROM_SNAPSHOTS = {"snapshot_model": 1, "snapshot_corpus": 1, **FROM_TOKENS}

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


@pytest.fixture(scope="module")
def digests(space: Space) -> dict[str, str]:
    return space.digests()


def changed(space: Space, before: dict[str, str]) -> set[str]:
    after = space.digests()
    assert set(after) == set(before) == EVERY
    return {rule for rule in after if after[rule] != before[rule]}


def test_the_code_of_every_rule_is_a_param_of_it(space: Space, digests: dict[str, str]) -> None:
    """What the digests below show holds for Snakemake."""
    recorded = space.recorded_params()
    assert set(recorded) == EVERY
    for rule, digest in digests.items():
        assert repr(digest) in recorded[rule], rule


@pytest.mark.parametrize("module", MODULES)
def test_an_edit_of_a_module_changes_the_code_of_what_runs_it(
    space: Space, digests: dict[str, str], module: str
) -> None:
    with appended(space, module, "\n_EDITED = True\n"):
        assert changed(space, digests) == USERS[module]
    assert changed(space, digests) == set()


@pytest.mark.parametrize("script", sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py")))
def test_an_edit_of_a_script_changes_the_code_of_its_rule(space: Space, digests: dict[str, str], script: str) -> None:
    with space.edited(space.repo / "scripts" / f"{script}.py", "from pathlib", "import math\nfrom pathlib"):
        assert changed(space, digests) == (FIGURES if script == "draw_figure" else {script})


@pytest.mark.parametrize(
    ("module", "jobs"),
    [
        ("config.py", {}),
        ("figures/token_noise.py", {"draw_token_noise": 1, "write_findings": 1}),
        ("figures/style.py", DRAWN),
        ("statistics.py", CONDENSED),
        ("averages.py", {"average_activations": 1, "ablate_heads": 6, "ablate_layers": 2, **CONDENSED}),
        ("replay.py", {"ablate_heads": 6, "ablate_layers": 2, **CONDENSED}),
        (
            "traced_repair.py",
            {
                **{"trace_repair": 2, "condense_traced_repair": 1, "correlate_next_layer": 1},
                **{"draw_who_repairs_whom": 1, "draw_next_layer_correlation": 1, "write_findings": 1},
            },
        ),
        ("activations.py", FROM_ACTIVATIONS),
        ("jobs.py", FROM_SNAPSHOTS),
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
            {
                **OF_CHOSEN,
                **dict.fromkeys(("draw_token_noise", "draw_next_layer_correlation", "draw_who_repairs_whom"), 1),
                "write_findings": 1,
            },
        ),
        (
            "analyses.reinforcement_scales",
            [2],
            {
                **{"reinforce_heads": 2, "condense_reinforcement": 1},
                **{"draw_self_reinforcement": 1, "write_findings": 1},
            },
        ),
        (
            "ablations.zero.heads",
            [[0, 1], [1, 1]],
            {"ablate_heads": 2, "condense_ablations": 1, "draw_effect_vs_logit_change": 1, "write_findings": 1},
        ),
        ("compute.dtype", "float64", FROM_ACTIVATIONS),
        ("compute.center_unembed", False, FROM_ACTIVATIONS),
        ("tokens.seed", 1, FROM_TOKENS),
        ("models.tiny.weights", "random", {"snapshot_model": 1, **FROM_TOKENS}),
        ("corpora.words.documents", 4, {"snapshot_corpus": 1, **FROM_TOKENS}),
    ],
)
def test_a_config_value_makes_stale_what_uses_it_and_what_follows(
    space: Space, path: str, value: Any, jobs: dict[str, int]
) -> None:
    with configured(space, path, value):
        assert space.jobs() == jobs


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
    assert json.loads((space.run / "prompts.json").read_text()) == {"asked": 12, "held": 16}


def test_fewer_prompts_recompute_no_shard(space: Space) -> None:
    with configured(space, "tokens.prompts", 4):
        jobs = space.jobs()
        assert jobs["cache_activations"] == 0
        assert jobs["select_top_tokens"] == 1


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
    path = space.work / "text" / "new.txt"
    path.write_text("the cat sat .", encoding="utf-8")
    try:
        assert space.jobs()["snapshot_corpus"] == 1
    finally:
        path.unlink()
