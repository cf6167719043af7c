"""`selfrepair heads`, `show`, `compare` and `ablate` on the tiny run: numbers of its tables, every example, and wrong input."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import selfrepair
from selfrepair.commands.app import PANELS, app
from selfrepair.commands.options import examples_of
from workflow.running import Space

from conftest import MakeOnce

pytestmark = pytest.mark.filterwarnings("error")

HEADS = Path("results/tiny/words/tables/resample/heads.parquet")
STANDS_FOR = {
    "results/smollm2-135m-instruct/wikipedia": "results/tiny/words",
    "smollm2-135m-instruct": "tiny",
    "config/mine.yaml": "config.yaml",
    "models/mine": "model",
    "--model mine": "--model tiny",
    "--layer 26": "--layer 1",
    "26.8": "1.2",
    "L26H8": "L1H2",
    "20.6": "0.1",
}
"""What the tiny run has in the place of what examples name."""
EXAMPLES = [
    example.strip()
    for group in PANELS.values()
    for command in group
    for example in examples_of(command).splitlines()[1:]
]


@pytest.fixture(scope="module")
def space(finished: Space, make_once: MakeOnce) -> Space:
    """The finished run, and beside it others: that of its first four prompts alone, and with weights in bfloat16."""

    def fill(folder: Path) -> None:
        copy = finished.copy(folder / "space")
        for name, key, value in (("elsewhere", "tokens.prompts", 4), ("rounded", "compute.weights", "bfloat16")):
            other = finished.copy(folder / "other")
            other.change(key, value)
            other.make(str(HEADS))
            shutil.copytree(other.work / "results", copy.work / name / "results")
            shutil.rmtree(other.root)

    return Space(make_once("commands", fill) / "space")


@pytest.fixture
def run(space: Space, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command in the folder of the finished run."""
    monkeypatch.chdir(space.work)

    def call(line: str, width: int = 80) -> Any:
        return CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": str(width)})

    return call


def found(done: Any) -> Any:
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def rows(done: Any) -> list[list[str]]:
    """What stands between the line below the columns' names and the end of the table."""
    assert done.exit_code == 0, (done.output, done.exception)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    start = next(at for at, line in enumerate(lines) if set(line) == {"─"}) + 1
    return [line.split() for line in lines[start:]]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(space: Space, monkeypatch: pytest.MonkeyPatch, example: str) -> None:
    for word, here in STANDS_FOR.items():
        example = example.replace(word, here)
    program, command, *arguments = shlex.split(example)
    assert program == "selfrepair"
    if command in ("why", "verify", "take-notes"):  # Snakemake, in a process of its own
        config = [] if "--configfile" in arguments else ["--configfile", "config.yaml"]
        done = space.execute([sys.executable, "-m", "selfrepair", command, *arguments, *config])
        code, printed = done.returncode, done.stdout
    else:
        monkeypatch.chdir(space.work)
        told = CliRunner().invoke(app, [command, *arguments])
        code, printed = told.exit_code, told.output
    assert code == 0, printed
    if "--json" in arguments:
        json.loads(printed)


def test_there_are_examples_of_every_command() -> None:
    commands = {command.__name__.replace("_", "-") for group in PANELS.values() for command in group}
    assert {example.split()[1] for example in EXAMPLES} == commands


@pytest.mark.parametrize(
    ("options", "kind", "selection", "by", "lowest"),
    [
        ("", "resample", "top", "self_repair", False),
        ("--kind zero --selection all --by logit_change --lowest", "zero", "all", "logit_change", True),
        ("--by clipped_fraction_from_mlps", "resample", "top", "clipped_fraction_from_mlps", False),
    ],
)
def test_heads_are_the_rows_of_the_table_ranked(
    run: Callable[..., Any], space: Space, options: str, kind: str, selection: str, by: str, lowest: bool
) -> None:
    table = pd.read_parquet(space.run / "tables" / kind / "heads.parquet").query("selection == @selection")
    wanted = table.sort_values(by, ascending=lowest)
    told = found(run(f"heads {options} --top 0 --json"))
    pd.testing.assert_frame_equal(pd.DataFrame(told["heads"])[wanted.columns], wanted.reset_index(drop=True))
    assert (told["kind"], told["settings"]["n_tokens"]) == (kind, 120)
    printed = rows(run(f"heads results {options} -n 3", width=200))
    assert [(row[0], row[1], row[2], row[4]) for row in printed] == [
        (f"L{row['layer']}H{row['head']}", *(f"{row[name]:.3f}" for name in (by, f"{by}_low", f"{by}_high")))
        for _, row in wanted.head(3).iterrows()
    ]


def test_heads_of_one_layer(run: Callable[..., Any]) -> None:
    assert {row["layer"] for row in found(run("heads --layer 1 --json"))["heads"]} == {1}
    assert len(found(run("heads --layer 1 --top 2 --json"))["heads"]) == 2


def test_the_noise_of_bfloat16_stands_beside_what_may_be_within_it(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfrepair.run import opened

    plain = opened.Run.heads

    def noisy(self: opened.Run, kind: str | None = None, selection: str = "top") -> pd.DataFrame:
        return plain(self, kind, selection).assign(noise_of_self_repair=0.125, noise_of_direct_effect=0.25)

    assert "noise" not in run("heads").stdout + run("show 1.2").stdout
    monkeypatch.setattr(opened.Run, "heads", noisy)
    printed = run("heads -n 1", width=100).stdout
    assert "bfloat16" in printed
    assert "0.125" in printed
    assert "not told from zero" in printed
    assert "0.125" not in run("heads --by logit_change -n 1", width=100).stdout
    for width in (80, 160):
        lines = run("show 1.2", width=width).stdout.splitlines()
        (of_effect,) = [line for line in lines if line.startswith("direct effect")]
        assert of_effect.count("0.250") == (2 if width == 160 else 1)
        (of_change,) = [line for line in lines if line.startswith("logit change ") and "LayerNorm" not in line]
        assert "0.125" not in of_change
        assert sum("not told from zero" in line for line in lines) == 1


def test_show_has_the_head_s_row_what_repairs_it_and_its_best_tokens(run: Callable[..., Any], space: Space) -> None:
    opened = selfrepair.open_run(space.run)
    layer, head = opened.chosen_heads[0]
    told = found(run(f"show {layer}.{head} --tokens 0 --repairs 0 --by self_repair --json"))
    for selection in ("top", "all"):
        of_head = opened.head(layer, head, selection=selection)
        assert {name: told["means"][selection][name] for name in of_head.index} == of_head.to_dict()
    table = opened.table("repair_rows")
    wanted = table[(table["layer"] == layer) & (table["head"] == head) & (table["by"] != "all")]
    name = ["by", "by_layer", "by_head"]
    by_name = {tuple(row[key] for key in name): row["repair"] for row in told["repairs"]}
    assert by_name == pytest.approx(
        {tuple(None if pd.isna(row[key]) else row[key] for key in name): row["repair"] for _, row in wanted.iterrows()}
    )
    assert [abs(row["repair"]) for row in told["repairs"]] == sorted(map(abs, by_name.values()), reverse=True)
    assert sum(by_name.values()) == pytest.approx(told["means"]["top"]["self_repair"], abs=1e-5)
    place = layer * 4 + head
    values = []
    for shard in ("00000", "00001"):
        with h5py.File(space.run / "ablations" / "resample" / f"{shard}.h5") as file:
            values.append(file["self_repair"][place])
    with h5py.File(space.run / "thresholds.h5") as file:
        top = file["top_tokens"][layer, head].astype(bool)
    best = np.sort(np.concatenate(values)[top])[::-1]
    np.testing.assert_array_equal(np.float32([row["self_repair"] for row in told["tokens"]]), best)
    assert np.mean(best) == pytest.approx(told["means"]["top"]["self_repair"], rel=1e-5)
    for row in told["tokens"]:
        text = opened.text(row["prompt"])
        assert row["text"] == "".join(text[: row["pos"] + 1])
        assert row["correct_token"] == text[row["pos"] + 1]


def test_show_is_readable_in_80_columns_and_narrower(run: Callable[..., Any]) -> None:
    printed = run("show L1H2 --tokens 3").stdout
    first, *lines = printed.splitlines()
    assert first.startswith("L1H2 of tiny on words, resample ablation: 12 top tokens of ")
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in printed
    assert all(line.rstrip().endswith("]") for line in lines[-4:-1])
    assert "The 3 of its 12 top tokens with the highest direct_effect." in printed
    for width in (1, 20, 40):
        assert run("show L1H2", width=width).exit_code == 0
    wide = run("show L1H2 --tokens 3", width=160).stdout
    assert "by final" in wide


def test_compare_has_both_runs_tables_and_says_what_differs(run: Callable[..., Any], space: Space) -> None:
    tables = [pd.read_parquet(space.work / folder / HEADS) for folder in (".", "elsewhere")]
    told = found(run("compare results elsewhere --top 0 --json"))
    assert told["settings"]["n_prompts"] == [8, 4]
    assert set(told["settings"]) == {"n_prompts", "n_tokens"}
    assert not told["same_prompts"]
    for name, table in zip(("first", "second"), tables, strict=True):
        wanted = table.query("selection == 'top'").set_index(["layer", "head"])["self_repair"]
        of_heads = pd.DataFrame(told["heads"]).set_index(["layer", "head"])[name]
        assert of_heads.to_dict() == pytest.approx(wanted.to_dict())
        assert told["mean"][name] == pytest.approx(wanted.mean())
    assert all(row["difference"] == pytest.approx(row["second"] - row["first"]) for row in told["heads"])
    assert all(row["difference_low"] <= row["difference_high"] for row in told["heads"])
    sizes = [abs(row["difference"]) for row in told["heads"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 8
    printed = run("compare results elsewhere").stdout
    assert told["shared_prompts"] == 4
    assert "Of 8 and 4 prompts 4 are in both runs, and were drawn together." in printed
    assert "--selection all" not in printed
    assert "too narrow: --selection all" in run("compare results elsewhere --by direct_effect").stdout
    assert all(len(line) <= 80 for line in printed.split("setting that differs")[1].splitlines()[:-1])


def test_differences_within_the_noise_of_bfloat16_are_not_told(run: Callable[..., Any], space: Space) -> None:
    noise = pd.read_parquet(space.work / "rounded" / HEADS).query("selection == 'all'")
    noise = noise.set_index(["layer", "head"])["noise_of_self_repair"]
    assert (noise > 0).all()
    line = "compare results rounded --selection all"
    told = found(run(f"{line} --top 0 --json"))
    heads = pd.DataFrame(told["heads"]).set_index(["layer", "head"])
    assert heads["difference_noise"].to_dict() == pytest.approx(noise[heads.index].to_dict())
    assert told["mean"]["difference_noise"] == pytest.approx(heads["difference_noise"].mean())
    apart = (heads["difference_low"] > 0) | (heads["difference_high"] < 0)
    within = heads["difference"].abs() < heads["difference_noise"]
    assert (apart & within).any()
    assert told["interval_without_zero"] == (apart & ~within).sum()
    printed = run(line).stdout
    assert "not told from zero, and not counted" in printed
    assert f" {heads['difference_noise'].max():.3f} " in f"{printed} "
    assert "bfloat16" not in run("compare results elsewhere").stdout


def test_a_run_compared_with_its_copy_differs_in_nothing(run: Callable[..., Any], space: Space, tmp_path: Path) -> None:
    shutil.copytree(space.work / "results", tmp_path / "results")
    told = found(run(f"compare results {tmp_path} --by pooled_repair_fraction --selection all --kind zero --json"))
    assert told["settings"] == {}
    assert told["same_prompts"]
    assert all(row[f"difference{end}"] == 0 for row in told["heads"] for end in ("", "_low", "_high"))
    assert told["mean"]["first"] == pytest.approx(
        selfrepair.open_run(space.run).model_mean("zero", "all")["pooled_repair_fraction"]
    )
    assert "No setting differs." in run(f"compare results {tmp_path}").stdout


def test_ablate_gives_the_run_s_own_numbers_from_its_own_text(run: Callable[..., Any], space: Space) -> None:
    opened = selfrepair.open_run(space.run)
    texts = ["".join(opened.text(prompt)[1:]).strip() for prompt in range(8)]
    prompt = next(at for at, text in enumerate(texts) if "<" not in text)
    told = found(run(f'ablate --model tiny --kind zero --head 0.1 --head 1.3 --json --text "{texts[prompt]}"'))
    ablations = opened.ablations("zero")
    for place, of in zip((1, 7), told["heads"], strict=True):
        for name in ("direct_effect", "logit_change", "self_repair", "self_repair_from_mlps"):
            wanted = ablations[name].isel(head=place, prompt=prompt).values
            np.testing.assert_allclose([row[name] for row in of["tokens"]], wanted, atol=1e-5)


def test_wrong_input_is_said_in_a_line(run: Callable[..., Any], space: Space, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "file").write_text("x")
    cases = {
        "heads nowhere": "nowhere is no folder: name that of a run",
        f"heads {tmp_path}/file": "file is no folder",
        f"heads {tmp_path}": "holds no run with a table of heads",
        "heads --kind noise": "the run has no 'noise' ablation: wanted one of resample, mean, zero",
        "heads --selection most": "has no rows of selection 'most'",
        "heads --by self_repare": "; did you mean self_repair?",
        "heads --layer 2": "--layer 2 has no ablated heads: the model has layers 0 to 1",
        "show 2.0": "no head 2.0 in this run: the model has layers 0 to 1 of heads 0 to 3",
        "show 1.99999999999999999999": "no head 1.99999999999999999999",
        "show one": "head is 'one'; wanted LAYER.HEAD",
        "show 1.2 nowhere": "nowhere is no folder",
        "show 1.2 --by prompt": "--by prompt is none of direct_effect",
        "compare results results/tiny/words": "are one run: name two",
        "compare results nowhere": "nowhere is no folder",
        "compare results elsewhere --kind noise": "has no 'noise' ablation",
        "compare results elsewhere --kind zero": "elsewhere/results/tiny/words has no 'zero' ablation: it has resample",
        "compare results elsewhere --by layer": "--by layer is none of",
        "compare results elsewhere --selection most": "--selection is 'most': wanted one of top, all",
        "ablate --model tiny --head 7.0 --text 'the cat'": "no head 7.0: results/snapshots/models/tiny has layers 0 to 1",
    }
    for line, said in cases.items():
        for width in (80, 30):
            done = run(line, width=width)
            assert (done.exit_code, done.stdout) == (2, ""), (line, done.output, done.exception)
            assert done.stderr.startswith("Error: ")
            assert said in done.stderr, line
            assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("top_fraction", 0.2, "top_fraction is 0.1 in the first and 0.2 in the second, so their means are over tokens"),
        ("n_heads", 5, "n_heads is 4 in the first and 5 in the second, so these are other heads"),
        ("first_position", 1, "first_position is 0 in the first and 1 in the second"),
    ],
)
def test_runs_that_measured_something_else_are_not_compared(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, setting: str, value: Any, said: str
) -> None:
    from selfrepair.run import opened

    def settings(self: opened.Run) -> dict[str, Any]:
        found = dict(opened.read_settings(self._table_path("heads", "resample")))
        return {**found, setting: value} if "elsewhere" in str(self.folder) else found

    monkeypatch.setattr(opened.Run, "settings", property(settings))
    done = run("compare results elsewhere")
    assert done.exit_code == 2
    assert "cannot be compared" in done.stderr
    assert said in done.stderr


def test_runs_of_other_kinds_are_not_compared_unawares(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfrepair.run import opened

    def kinds(self: opened.Run) -> tuple[str, ...]:
        return ("mean",) if "elsewhere" in str(self.folder) else ("resample", "mean")

    monkeypatch.setattr(opened.Run, "kinds", property(kinds))
    said = run("compare results elsewhere").stderr
    assert (
        "the main kind of ablation is resample in results/tiny/words and mean in elsewhere/results/tiny/words" in said
    )
    assert "compare by --kind mean, which both have" in said


@pytest.mark.parametrize("damage", ["truncated", "another", "unreadable"])
def test_a_file_that_cannot_be_trusted_is_refused(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    work = tmp_path / "work"
    shutil.copytree(space.work, work)
    monkeypatch.chdir(work)
    path = work / HEADS
    content = path.read_bytes()
    path.unlink()
    if damage == "unreadable":
        path.mkdir()
    else:
        path.write_bytes(content[:-100] if damage == "truncated" else content.replace(b"self_repair", b"other_thing"))
    for line in (["heads"], ["show", "1.2"], ["compare", "results", "elsewhere"]):
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 2, (line, done.output, done.exception)
        assert "heads.parquet" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_stops_reading_is_no_error(space: Space) -> None:
    line = f"{shlex.quote(sys.executable)} -m selfrepair heads --top 0 --json | head -1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=space.work, env=space.environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{\n", "")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "selfrepair", "show", "1.2"]
    gone = subprocess.run(
        command, cwd=space.work, env=space.environment, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert gone.stderr == b""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("selfrepair heads ", ["results/tiny/words"]),
        ("selfrepair heads results/no", []),
        ("selfrepair show ", None),
        ("selfrepair compare results elsewhere/results/t", []),
    ],
)
def test_runs_and_chosen_heads_complete(space: Space, typed: str, offered: list[str] | None) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    environment = {**space.environment, "_SELFREPAIR_COMPLETE": "complete_bash", **words}
    command = [sys.executable, "-m", "selfrepair"]
    done = subprocess.run(command, cwd=space.work, env=environment, capture_output=True, text=True, check=False)
    chosen = [f"{layer}.{head}" for layer, head in selfrepair.open_run(space.run).chosen_heads]
    assert done.stdout.split() == (chosen if offered is None else offered)
