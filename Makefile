# Every command of the project; `make help` lists them. A fresh machine needs Python >= 3.12 and make.
BIN := .venv/bin
# Which uv writes the locks; it is fetched from the package index into a folder of its own.
UV_VERSION := 0.13.9
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo run test check format types docs docs-check mkdocs-serve lock hooks clean \
	bench bench-queue

help:  ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## create .venv from the hash-locked dependencies and prepare the models (once; then instant)
	@tools/setup run

setup-dev:  ## the same, with what tests, checks and documentation need
	@tools/setup dev

demo: setup  ## crawl, embed, index and question the project's own site, then stop everything
	@$(BIN)/python -m cli.demo $(ARGS)

run: setup  ## like demo, then keep serving on http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/python -m cli.demo --serve $(ARGS)

test: setup-dev  ## run all tests on servers of their own; ARGS="-k name" narrows
	@$(BIN)/python tools/run_tests.py $(ARGS)

check: setup-dev  ## format, lint, types, import contracts, links of the docs, Caddyfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir .venv/share/xnai/site-check
	$(BIN)/python tools/validate_caddyfile.py Caddyfile

format: setup-dev  ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## build the documentation into site/, with no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

mkdocs-serve: setup  ## serve the documentation on http://127.0.0.1:8001 while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

lock: setup  ## resolve the dependencies anew and write the requirements*.txt locks
	@$(BIN)/python tools/lock.py --uv-version $(UV_VERSION) $(ARGS)

bench: bench-queue  ## all benchmarks

bench-queue: setup  ## our queue beside its peers on the same servers; ARGS="--quick" takes two minutes
	@$(BIN)/python -m bench.queue $(ARGS)

hooks: setup-dev  ## install the pre-commit hooks into this checkout
	$(BIN)/pre-commit install

clean:  ## delete what tests and builds leave behind; .venv and data stay
	rm -rf site build xnai.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
