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
    "draw_layernorm_repair",
    "draw_mlp_repair",
    "draw_repair_breakdown",
    "draw_self_repair_by_layer",
    "draw_token_noise",
}
SNAPSHOTS = {"snapshot_model", "snapshot_corpus"}
TABLES = {"condense_ablations", "tabulate_tokens"}
RUNS_THE_MODEL = {"cache_activations", "ablate_heads"}
READS_HDF5 = {
    *("tokenize_corpus", "check_prompts", "cache_activations", "select_top_tokens", "average_activations"),
    *("ablate_heads", *TABLES),
}
EVERY = SNAPSHOTS | READS_HDF5 | FIGURES
READS_SNAPSHOTS = {"tokenize_corpus", "check_prompts", *RUNS_THE_MODEL, *TABLES}

# The rules that run each module, and are stale by an edit of it. What is made from their results follows by itself.
USERS = {
    "__init__.py": EVERY,
    "ablation.py": {"ablate_heads"},
    "activations.py": RUNS_THE_MODEL,
    "averages.py": {"average_activations", "ablate_heads"},
    "clean.py": RUNS_THE_MODEL,
    # Used while the workflow is put together; what it gives reaches jobs as params.
    "config.py": set(),
    "families.py": RUNS_THE_MODEL | TABLES,
    "figures/__init__.py": FIGURES,
    "figures/effect_vs_logit_change.py": {"draw_effect_vs_logit_change"},
    "figures/layernorm_repair.py": {"draw_layernorm_repair"},
    "figures/mlp_repair.py": {"draw_mlp_repair"},
    "figures/repair_breakdown.py": {"draw_repair_breakdown"},
    "figures/self_repair_by_layer.py": {"draw_self_repair_by_layer"},
    "figures/style.py": FIGURES,
    "figures/token_noise.py": {"draw_token_noise"},
    "jobs.py": EVERY,
    "models.py": RUNS_THE_MODEL,
    "progress.py": EVERY,
    "provenance.py": EVERY,
    "quantities.py": {"ablate_heads"} | TABLES | FIGURES,
    "replay.py": {"ablate_heads"},
    "selection.py": {"select_top_tokens", "ablate_heads"} | TABLES,
    "snapshots/__init__.py": SNAPSHOTS | READS_SNAPSHOTS,
    "snapshots/corpora.py": {"snapshot_corpus"},
    "snapshots/hub.py": SNAPSHOTS,
    "snapshots/manifest.py": SNAPSHOTS | READS_SNAPSHOTS,
    "snapshots/models.py": {"snapshot_model"},
    "snapshots/packages.py": SNAPSHOTS,
    "snapshots/sources.py": SNAPSHOTS,
    "snapshots/wikitext.py": {"snapshot_corpus"},
    "statistics.py": TABLES,
    "storage.py": READS_HDF5,
    "tables.py": TABLES,
    "tokens.py": {"tokenize_corpus", "check_prompts"} | RUNS_THE_MODEL,
}
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


@pytest.mark.parametrize("module", MODULES)
def test_an_edit_of_a_module_makes_stale_what_runs_it(space: Space, module: str) -> None:
    with appended(space, module, "\n_EDITED = True\n"):
        assert space.edited_rules() == USERS[module]


@pytest.mark.parametrize("script", sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py")))
def test_an_edit_of_a_script_makes_its_rule_stale(space: Space, script: str) -> None:
    with space.edited(space.repo / "scripts" / f"{script}.py", "from pathlib", "import math\nfrom pathlib"):
        assert space.edited_rules() == (FIGURES if script == "draw_figure" else {script})


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


def test_what_is_made_of_stale_results_is_made_again(space: Space) -> None:
    with appended(space, "statistics.py", "\n_EDITED = True\n"):
        assert space.jobs() == {"condense_ablations": 3, "tabulate_tokens": 1, **dict.fromkeys(FIGURES, 1)}
    with appended(space, "averages.py", "\n_EDITED = True\n"):
        kinds = {"average_activations": 1, "ablate_heads": 6, "condense_ablations": 3, "tabulate_tokens": 1}
        assert space.jobs() == {**kinds, **dict.fromkeys(FIGURES, 1)}


@pytest.mark.parametrize(
    ("path", "value", "rules"),
    [
        # Captions of figures say how many resamples, which fraction and how many prompts, so that they are redrawn.
        ("statistics.n_bootstrap", 60, {"condense_ablations"} | FIGURES),
        ("statistics.bootstrap_seed", 1, {"condense_ablations"}),
        ("statistics.top_fraction", 0.2, {"select_top_tokens", "condense_ablations"} | FIGURES),
        ("statistics.first_position", 1, {"select_top_tokens", *TABLES} | FIGURES),
        ("figures.token_noise.heads", [[0, 1]], {"tabulate_tokens"}),
        ("compute.dtype", "float64", RUNS_THE_MODEL),
        ("compute.center_unembed", False, RUNS_THE_MODEL),
        ("tokens.seed", 1, {"tokenize_corpus"}),
        ("models.tiny.license", "MIT", {"snapshot_model"}),
        ("corpora.words.documents", 4, {"snapshot_corpus"}),
        ("ablations.zero.heads", [[0, 1], [1, 1]], {"ablate_heads"}),
    ],
)
def test_a_config_value_makes_stale_what_uses_it(space: Space, path: str, value: Any, rules: set[str]) -> None:
    with configured(space, path, value):
        assert space.edited_rules() == rules


def test_what_comes_before_an_edited_value_is_kept(space: Space) -> None:
    drawn = dict.fromkeys(FIGURES, 1)
    tables = {"condense_ablations": 3, "tabulate_tokens": 1, **drawn}
    with configured(space, "statistics.n_bootstrap", 60):
        assert space.jobs() == tables
    with configured(space, "statistics.top_fraction", 0.2):
        assert space.jobs() == {"select_top_tokens": 1, "ablate_heads": 6, **tables}
    with configured(space, "figures.token_noise.heads", [[0, 1]]):
        assert space.jobs() == {"tabulate_tokens": 1, "draw_token_noise": 1}
    with configured(space, "ablations.zero.heads", [[0, 1], [1, 1]]):
        assert space.jobs() == {"ablate_heads": 2, "condense_ablations": 1, "draw_effect_vs_logit_change": 1}


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
