"""What Snakemake itself takes to put jobs together: a dry run of as many rules a shard as the workflow has, that do nothing.

`python benchmarks/bare_snakemake.py 1000 5000`; beside it, `snakemake -n -q` of a config with as many shards.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = 11
SNAKEFILE = """
SHARDS = [f"{at:05d}" for at in range(int(config["shards"]))]


rule all:
    input:
        [f"results/m/c/s{stage}/{shard}.h5" for stage in range(STAGES) for shard in SHARDS],


rule tokens:
    output:
        "results/{model}/{corpus}/tokens.h5",
    shell:
        "touch {output}"


for stage in range(STAGES):

    rule:
        name:
            f"s{stage}"
        input:
            "results/{model}/{corpus}/tokens.h5",
            ["results/{model}/{corpus}/s0/{shard}.h5"] if stage else [],
        output:
            f"results/{{model}}/{{corpus}}/s{stage}/{{shard}}.h5",
        shell:
            "touch {output}"
"""


def main() -> None:
    """Print seconds and peak memory for each number of shards."""
    with tempfile.TemporaryDirectory() as folder:
        snakefile = Path(folder) / "Snakefile"
        snakefile.write_text(f"STAGES = {STAGES}\n{SNAKEFILE}", encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--directory", folder]
        for shards in map(int, sys.argv[1:]):
            start = time.perf_counter()
            asked = ["--dry-run", "--quiet", "--config", f"shards={shards}"]
            process = subprocess.Popen([*command, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            assert status == 0
            print(f"{shards} shards {time.perf_counter() - start:.1f} s {used.ru_maxrss / 1e3:.0f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
