#!/usr/bin/env bash
# Snakemake runs this after it has made an environment for jobs from environment.yml (`--sdm conda`), in the folder that it was
# started in: jobs import the package of this checkout.
set -eu
python -m pip install --no-deps --editable .
