"""Snakemake's command line, run in forks of a process that has imported it: half of a dry run is importing.

A request is a line of JSON: the arguments of `run`. The answer is a line with the exit code.
"""

import json
import logging
import os
import sys

import snakemake.cli


def run(arguments: list[str], folder: str, environment: dict[str, str], package: str, printed: str) -> int:
    """What `snakemake ARGUMENTS` does in a process of its own.

    Args:
        arguments: Of the command line.
        folder: Where it runs.
        environment: Its environment.
        package: Folder that holds the package.
        printed: File for what it prints.

    Returns:
        Its exit code.
    """
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(path, flags), number)
    os.dup2(1, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, package)
    sys.argv = ["snakemake", *arguments]
    try:
        snakemake.cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = run(**json.loads(line))
            finally:
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
