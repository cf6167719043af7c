"""The workflow as a module of another one, which has a rule of its own that reads a table: docs/module.md."""

import sys
import threading
from collections import Counter
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from workflow.running import Space

pytestmark = pytest.mark.filterwarnings("error")

IMPORTING = """
configfile: "importing.yaml"


rule all:
    input:
        "strongest.txt",


module selfrepair:
    snakefile:
        "../repo/Snakefile"
    config:
        config["selfrepair"]
{prefix}

use rule * from selfrepair {names}


rule strongest:
    input:
        heads="results/tiny/words/tables/resample/heads.csv",
    output:
        "strongest.txt",
    run:
        import csv

        with open(input.heads) as file:
            rows = [row for row in csv.DictReader(file) if row["selection"] == "top"]
        best = max(rows, key=lambda row: float(row["self_repair"]))
        with open(output[0], "w") as file:
            file.write("{{layer}}.{{head}}".format(**best))
        # What it was given has stayed as it was.
        assert config["mine"] == 3 and sorted(config["selfrepair"]) == {given}


onstart:
    selfrepair.onstart()


onsuccess:
    selfrepair.onsuccess()


onerror:
    selfrepair.onerror()
"""
NAMES = {"as they are": "exclude all", "renamed": "as sr_*"}


class SilentHandler(SimpleHTTPRequestHandler):
    """Files of a folder, without a word of what was asked for."""

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Importing(Space):
    """The space of the importing workflow, which has no profile."""

    @classmethod
    def at(cls, root: Path, names: str, prefix: str = "") -> "Importing":
        """Lay it beside ``repo`` and ``work``, its config with that of the tiny run as a section of its own."""
        space = cls(root)
        given = space.config
        (space.work / "importing.yaml").write_text(yaml.safe_dump({"mine": 3, "selfrepair": given}), encoding="utf-8")
        space.snakefile.parent.mkdir()
        text = IMPORTING.format(names=names, prefix=prefix, given=sorted(given))
        space.snakefile.write_text(text, encoding="utf-8")
        return space

    @property
    def snakefile(self) -> Path:
        return self.root / "importing" / "Snakefile"

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake"),
            *("--snakefile", str(self.snakefile)),
            *("--directory", str(self.work)),
            *("--cores", str(cores)),
            *("--nocolor", *arguments),
        ]


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_what_the_workflow_has_made_is_current_for_one_that_imports_it(copied: Space, names: str) -> None:
    space = Importing.at(copied.root, names)
    jobs = space.jobs()
    # By its first rule, and none of ours.
    assert jobs == Counter(strongest=1)
    figure = "repair_breakdown" if "exclude" in names else "sr_repair_breakdown"
    assert space.jobs(figure) == Counter()


def test_an_importing_workflow_runs_it_to_a_figure_as_it_runs_itself(
    fresh: Space, finished: Space, tmp_path: Path
) -> None:
    space = Importing.at(fresh.copy(tmp_path / "space").root, NAMES["renamed"])
    printed = space.make("strongest.txt", "sr_self_repair_by_layer", "--rerun-triggers", "mtime", "params", "input")
    assert "sr_ablate_heads" in printed
    for path in ("tables/resample/heads.parquet", "tables/resample/heads.csv", "figures/self_repair_by_layer.png"):
        assert (space.run / path).read_bytes() == (finished.run / path).read_bytes(), path
    heads = pd.read_csv(space.run / "tables" / "resample" / "heads.csv").query("selection == 'top'")
    best = heads.loc[heads.self_repair.idxmax()]
    assert (space.work / "strongest.txt").read_text(encoding="utf-8") == f"{best.layer:.0f}.{best['head']:.0f}"
    # What its handlers were handed on to do.
    assert not (space.work / ".snakemake" / "selfrepair.running").exists()
    assert {path.name for path in (space.work / "results" / "provenance" / "code").iterdir()} == {
        path.name for path in (finished.work / "results" / "provenance" / "code").iterdir()
    }
    # Run by itself, it has nothing to make again.
    own = Space(space.root)
    assert own.jobs("self_repair_by_layer") == Counter()
    why = [
        sys.executable,
        "-m",
        "selfrepair",
        "why",
        "strongest.txt",
        "--workflow",
        str(space.snakefile.parent),
    ]
    assert space.execute(why).stdout.splitlines() == ["Nothing: all 10 jobs are done."]


def test_a_module_with_a_prefix_is_refused(copied: Space) -> None:
    space = Importing.at(copied.root, NAMES["renamed"], prefix='    prefix: "deep"')
    done = space.snakemake("--dry-run")
    assert done.returncode == 1
    assert "Error: module selfrepair has a prefix" in done.stdout
    assert "leave prefix out" in done.stdout


def test_a_wrong_value_of_the_section_is_said_in_a_line(copied: Space) -> None:
    space = Importing.at(copied.root, NAMES["renamed"])
    text = yaml.safe_load((space.work / "importing.yaml").read_text(encoding="utf-8"))
    text["selfrepair"]["tokens"]["promts"] = 8
    (space.work / "importing.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    done = space.snakemake("--dry-run")
    assert done.returncode == 1
    assert "Error: config is wrong: tokens.promts" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_snakefile_that_is_not_on_this_machine_is_refused(copied: Space) -> None:
    """As github(...) names one: its scripts and package could not be found."""
    space = Importing.at(copied.root, NAMES["renamed"])
    handler = partial(SilentHandler, directory=str(copied.repo))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        text = space.snakefile.read_text(encoding="utf-8")
        space.snakefile.write_text(text.replace("../repo/Snakefile", f"{address}/Snakefile"), encoding="utf-8")
        done = space.snakemake("--dry-run")
        server.shutdown()
    assert done.returncode == 1
    assert f"Error: selfrepair is imported from {address}: clone it, and name the Snakefile in the clone" in done.stdout
    assert "Traceback" not in done.stdout
