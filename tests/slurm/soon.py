"""Snakemake's command line that asks its scheduler every second: `python tests/slurm/soon.py ...`.

The Slurm plugin waits ten seconds longer after each look at which no job had ended, which in jobs of seconds is most of a run.
"""

import sys

import snakemake
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

PAUSE_S = 1

if __name__ == "__main__":
    said = RemoteExecutor.next_seconds_between_status_checks
    assert said.fset is not None
    RemoteExecutor.next_seconds_between_status_checks = property(lambda executor: PAUSE_S, said.fset)
    # As `python -m snakemake` has it, which workflow and jobs look at.
    sys.argv[0] = snakemake.__file__.replace("__init__", "__main__")
    main()
