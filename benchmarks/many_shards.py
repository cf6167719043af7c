"""What it costs to condense many shards: memory and time of every job that reads all of them, against their number.

Each job runs in a process of its own on one made-up shard that is named as often as wanted (made_shards.py), as a thousand
files of its kind would be read.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from made_shards import Sizes, made, make_shards, write_settings

from selfrepair.files.sealed import write_json
from selfrepair.measure.chosen_heads import choose_heads
from selfrepair.measure.mean_activations import average_activations
from selfrepair.measure.thresholds import find_thresholds
from selfrepair.workflow.jobs import SMALL_POOL, peak_mb

SHAPES = {
    "SmolLM2-135M": Sizes(layers=30, heads=9),
    "Llama-7B": Sizes(layers=32, heads=32, neurons=11008),
    "tiny": Sizes(layers=3, heads=4, positions=15, neurons=60, best=10),
}


def jobs(
    files: dict[str, Path], sizes: Sizes, n_shards: int, n_bootstrap: int, out: Path
) -> dict[str, Callable[[], None]]:
    """By rule, the job that reads ``n_shards`` shards; the first makes thresholds.h5, which others read."""
    out.mkdir(parents=True, exist_ok=True)
    shards = {kind: [path] * n_shards for kind, path in files.items()}
    chosen, thresholds, heads = files["chosen_heads"], out / "thresholds.h5", out / "settings.parquet"
    write_settings(heads, sizes, n_shards, n_bootstrap)

    def table(name: str) -> Path:
        return out / f"{name}.parquet"

    def named(*names: str) -> dict[str, Path]:
        return {name: table(name) for name in names}

    of_ablations = {"heads_table": heads, "shards": shards["ablations"], "thresholds": thresholds}

    def thresholds_job() -> None:
        find_thresholds(
            shards=shards["activations"],
            out=thresholds,
            top_fraction=sizes.top_fraction,
            first_position=0,
            provenance={},
        )

    def table_job(module: str, function: str, **arguments: object) -> Callable[[], None]:
        def run() -> None:
            from importlib import import_module

            getattr(import_module(f"selfrepair.tables.{module}"), function)(**arguments)

        return run

    neurons = ("neuron_share", "neuron_concentration", "erasure_neurons", "erasure_quadrants", "neuron_consistency")
    published = Path(__file__).parent.parent / "resources" / "published" / "self_repair_by_head.csv"
    return {
        "find_thresholds": thresholds_job,
        "average_activations": lambda: average_activations(
            shards=shards["activations"], out=out / "mean.h5", provenance={}
        ),
        "choose_heads": lambda: choose_heads(
            shards=shards["ablations"], thresholds=thresholds, out=out / "chosen.json", heads=None
        ),
        "tabulate_heads": table_job(
            *("heads", "tabulate_heads"),
            **{
                **{"model_manifest": files["model"], "shards": shards["ablations"], "thresholds": thresholds},
                **{"tables": named("heads", "layers", "model"), "labels": {"model": "made up"}},
                **{"first_position": 0, "n_bootstrap": n_bootstrap, "bootstrap_seed": 0},
            },
        ),
        "tabulate_checks": table_job(
            "checks",
            "tabulate_checks",
            heads_table=heads,
            shards={"ablations": shards["ablations"]},
            out=table("checks"),
        ),
        "tabulate_token_noise": table_job(
            *("token_noise", "tabulate_token_noise"),
            **{**of_ablations, "chosen_heads": chosen, "tokens_out": table("tokens"), "heads_out": table("spread")},
        ),
        "tabulate_layernorm_scale": table_job(
            *("layernorm_scale", "tabulate_layernorm_scale"),
            **{**of_ablations, "chosen_heads": chosen, "summary": table("ratio"), "histogram": table("histogram")},
        ),
        "tabulate_ablation_type": table_job(
            *("ablation_type", "tabulate_ablation_type"),
            **{**of_ablations, "chosen_heads": chosen, "tokens": table("type_tokens"), "means": table("types")},
        ),
        "tabulate_layernorm_claim": table_job(
            *("layernorm_claim", "tabulate_layernorm_claim"),
            **{**of_ablations, "published": published, "out": table("claim")},
        ),
        "tabulate_frozen_layernorm": table_job(
            *("frozen_layernorm", "tabulate_frozen_layernorm"),
            **{**of_ablations, "chosen_heads": chosen, "frozen": shards["frozen_layernorm"], "out": table("frozen")},
        ),
        "tabulate_neurons": table_job(
            *("neurons", "tabulate_neurons"), heads_table=heads, shards=shards["neurons"], tables=named(*neurons)
        ),
        "tabulate_reinforcement": table_job(
            *("reinforcement", "tabulate_reinforcement"),
            heads_table=heads,
            shards=shards["reinforcement"],
            out=table("reinforcement"),
        ),
        "tabulate_repair": table_job(
            *("repair", "tabulate_repair"),
            **{**of_ablations, "chosen_heads": chosen, "tables": named("by_layer", "rows", "pairs")},
        ),
        "tabulate_moved_residual": table_job(
            *("moved_residual", "tabulate_moved_residual"),
            ablations=shards["ablations"],
            moved=shards["moved_residual"],
            heads_table=heads,
            tables={"correlations": table("correlations"), "heads": table("next_heads")},
        ),
        "tabulate_layer_ablations": table_job(
            *("layer_ablations", "tabulate_layer_ablations"),
            shards=shards["layer_ablations"],
            heads_table=heads,
            out=table("layer_ablations"),
        ),
        "tabulate_selection_control": table_job(
            *("selection_control", "tabulate_selection_control"),
            heads_table=heads,
            ablations=shards["ablations"],
            other_donor=shards["other_donor"],
            thresholds=thresholds,
            layers_out=table("control_layers"),
            model_out=table("control_model"),
        ),
        "tabulate_donor_noise": table_job(
            *("donor_noise", "tabulate_donor_noise"),
            heads_table=heads,
            shards=shards["donor_noise"],
            chosen_heads=chosen,
            heads_out=table("donor_noise"),
            tokens_out=table("donor_tokens"),
        ),
    }


def main() -> None:
    """Measure every job, or run one and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M")
    parser.add_argument("--shards", type=int, nargs="+", default=[4, 977, 2000])
    parser.add_argument("--only", nargs="+", help="rules to measure; find_thresholds is needed by others")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/many_shards.json"))
    parser.add_argument("--job", nargs=3, metavar=("RULE", "SHARDS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = SHAPES[arguments.shape]
    if arguments.job:
        rule, n_shards, folder = arguments.job
        files = made(Path(folder) / "shards")
        run = jobs(files, sizes, int(n_shards), arguments.bootstrap, Path(folder) / n_shards)[rule]
        run()
        print(json.dumps({"mb": peak_mb(), "cpu_s": time.process_time()}))  # noqa: T201
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        files = make_shards(shards, sizes)
        for n_shards in arguments.shards:
            for rule in jobs(files, sizes, 1, 10, Path(folder) / "names"):
                if arguments.only and rule not in arguments.only:
                    continue
                command = [
                    sys.executable,
                    __file__,
                    "--shape",
                    arguments.shape,
                    "--bootstrap",
                    str(arguments.bootstrap),
                ]
                done = subprocess.run(
                    [*command, "--job", rule, str(n_shards), folder],
                    env=os.environ | dict([SMALL_POOL]),
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                found.setdefault(rule, {})[str(n_shards)] = took = json.loads(done.stdout.splitlines()[-1])
                print(f"{rule} {n_shards} {took['mb']:.0f} MB {took['cpu_s']:.1f} s", flush=True)  # noqa: T201
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, {"shape": arguments.shape, "jobs": found})


if __name__ == "__main__":
    main()
