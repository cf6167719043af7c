"""A result is stale when its inputs, the config values it uses or the package code it runs changed: no more, no less."""

import hashlib
import json
import os
import runpy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfrepair.files.sealed import read_json
from workflow.running import REPOSITORY, Space
from workflow.stale import (
    CONDENSED,
    DRAWN,
    EVERY,
    EVERY_HEAD,
    EXPLORED,
    FIGURES,
    FROM_ACTIVATIONS,
    KEYS,
    MODELS_FIGURES,
    MOVED,
    NEURON_FIGURES,
    OF_ALL_MODELS,
    OPENED,
    REPLAYED,
    RUNS,
    TABULATED,
    USERS,
    drawn,
)

pytestmark = pytest.mark.filterwarnings("error")

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
        ("workflow/jobs.py", {}),
        ("figures/token_noise.py", drawn("token_noise")),
        ("tables/neurons.py", {"tabulate_neurons": 1, **drawn(*NEURON_FIGURES), **EXPLORED}),
        ("figures/style/looks.py", {**DRAWN, **EXPLORED}),
        ("tables/statistics.py", TABULATED),
        ("measure/chosen_heads.py", {**CONDENSED, "ablate_heads": 6}),
        ("measure/mean_activations.py", {"average_activations": 1, **OPENED}),
        ("engine/replay.py", REPLAYED),
        ("measure/moved_residual.py", MOVED),
        ("measure/activations.py", FROM_ACTIVATIONS),
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


def keys_of(schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys of the config that hold a value, dotted, names as ``*``."""
    for step in schema.get("$ref", "#").removeprefix("#").split("/")[1:]:
        root = root[step]
    schema = {**root, **schema} if "$ref" in schema else schema
    parts = {**schema.get("properties", {}), **({"*": of} if (of := schema.get("additionalProperties")) else {})}
    for name, part in parts.items():
        inner = list(keys_of(part, SCHEMA, f"{path}.{name}" if path else name))
        yield from inner or [f"{path}.{name}"]


SCHEMA = yaml.safe_load((REPOSITORY / "config" / "config.schema.yaml").read_text(encoding="utf-8"))


def test_every_key_is_listed() -> None:
    listed = {key.replace(".shape.", ".shape ").partition(" ")[0] for key in keys_of(SCHEMA, SCHEMA)}
    assert set(KEYS) | set(RUNS) == listed


@pytest.mark.parametrize("key", [key for key in KEYS if key != "models.*.published"])
def test_a_config_value_makes_stale_what_uses_it_and_what_follows(space: Space, key: str) -> None:
    value, jobs = KEYS[key]
    for name, other in (("model", "another"), ("text", "other_text")):
        if not (space.work / other).exists():
            shutil.copytree(space.work / name, space.work / other)
    path = key.replace("models.*", "models.tiny").replace("corpora.*", "corpora.words")
    if key == "models.*.parts":
        path, value = "models.tiny", {"parts": value, "file": "model.gguf", "license": "none"}
    with configured(space, path, value):
        assert space.jobs() == jobs


@pytest.mark.parametrize(
    ("path", "value", "jobs"),
    [
        ("models.tiny.source", "path:./model/", {}),
        ("corpora.words.source", "path:text/.", {}),
        ("models.tiny", {"license": "none", "source": "path:model"}, {}),
        ("statistics.top_fraction", 0.10, {}),
        ("analyses.reinforcement_scales", [1.0, 3, 5.0], {}),
        ("ablations.zero.heads", EVERY_HEAD, {}),
        ("ablations.resample.heads", EVERY_HEAD, {}),
    ],
)
def test_another_way_to_write_the_same_makes_nothing_stale(
    space: Space, path: str, value: Any, jobs: dict[str, int]
) -> None:
    with configured(space, path, value):
        assert space.jobs() == jobs


def test_the_chosen_heads_written_out_make_nothing_stale(space: Space) -> None:
    chosen = read_json(space.run / "chosen_heads.json")["heads"]
    with configured(space, "analyses.heads", chosen):
        assert space.jobs() == {}
    with configured(space, "analyses.heads", chosen[::-1]):
        assert space.jobs()["measure_neurons"] == 2


def test_heads_that_were_written_out_are_taken_though_others_would_be_chosen(finished: Space, tmp_path: Path) -> None:
    """Chosen, written out, ablated on other tokens: the list stands, whatever is the strongest now; and without it, that."""
    space = finished.copy(tmp_path / "space")
    path = space.run / "chosen_heads.json"
    chosen = read_json(path)["heads"]
    listed = [*chosen[1:], chosen[0]]
    target = str(path.relative_to(space.work))
    space.change("analyses.heads", listed)
    space.make(target)
    assert read_json(path) == {"heads": listed, "strongest": False}
    assert space.jobs(target) == {}
    space.change("analyses.heads", None)
    assert space.jobs(target) == {"choose_heads": 1}
    space.make(target)
    assert read_json(path) == {"heads": chosen, "strongest": True}
    assert space.jobs(target) == {}
    # Written out, then made again for another reason.
    space.change("analyses.heads", chosen)
    space.make(target, "--forcerun", "choose_heads")
    assert read_json(path) == {"heads": chosen, "strongest": True}
    assert space.jobs(target) == {}
    space.change("analyses.heads", None)
    assert space.jobs(target) == {}


def test_values_are_recorded_with_their_names(space: Space) -> None:
    """Snakemake compares the values of params without their names, so that two which are exchanged would go unseen."""
    recorded = space.recorded_params()
    assert "['neuron_layer=None', 'top_neurons=50']" in recorded["measure_neurons"]
    assert "['top_fraction=0.1', 'first_position=0']" in recorded["find_thresholds"]


@pytest.mark.parametrize(
    ("file", "rule", "what"),
    [
        ("tiny/words/tables/resample/heads.csv", "tabulate_heads", "edited"),
        ("tiny/words/tables/resample/model.csv", "tabulate_heads", "removed"),
        ("tiny/words/tables/resample/model.parquet", "tabulate_heads", "edited"),
        ("tiny/words/figures/token_noise.svg", "draw_token_noise", "edited"),
        ("tiny/words/figures/token_noise.svg", "draw_token_noise", "removed"),
        ("tiny/words/figures/token_noise.png", "draw_token_noise", "edited"),
        ("tiny/words/findings.md", "write_findings", "edited"),
        ("tiny/words/chosen_heads.json", "choose_heads", "edited"),
        ("snapshots/models/tiny/model.safetensors", "snapshot_model", "edited"),
        ("snapshots/models/tiny/tokenizer.json", "snapshot_model", "removed"),
        ("snapshots/corpora/words/documents.jsonl", "snapshot_corpus", "edited"),
    ],
)
def test_a_file_that_is_edited_or_removed_is_made_again(space: Space, file: str, rule: str, what: str) -> None:
    path = space.work / "results" / file
    kept, times = path.read_bytes(), path.stat()
    try:
        if what == "edited":
            path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        else:
            path.unlink()
        assert space.jobs()[rule] == 1
    finally:
        path.write_bytes(kept)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_file_that_is_copied_is_not_edited(space: Space) -> None:
    for path in [*(space.run / "tables").rglob("*.csv"), *(space.run / "figures").glob("*.svg")]:
        path.touch()
    assert space.jobs() == {}


def test_what_was_edited_is_made_again_once(finished: Space, tmp_path: Path) -> None:
    space = finished.copy(tmp_path / "space")
    csv = space.run / "tables" / "resample" / "model.csv"
    whole = csv.read_bytes()
    for _ in range(2):  # the second time, what was recorded is that it had been edited
        csv.write_bytes(b"0")
        space.make(str(csv.relative_to(space.work)))
        assert csv.read_bytes() == whole
        assert space.jobs(str(csv.relative_to(space.work))) == {}


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
        assert space.jobs() == KEYS["models.*.published"][1]


def test_the_page_has_these_tables() -> None:
    """`make docs` writes them."""
    drawing = runpy.run_path(str(REPOSITORY / "docs" / "draw_staleness.py"))
    page = drawing["PAGE"].read_text(encoding="utf-8")
    assert drawing["drawn"](page) == page


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
