# The Executable Transformer: `make book` builds it, `make test` checks it. Everything is made under .venv/ and out/.
# What is more than a command is in build.py.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
N ?=
PORT ?= 8000
URL ?=
ARGS ?=
VERSIONS ?= oldest
BIN := "$(CURDIR)/$(VENV)/bin"
ANY := $(if $(wildcard $(VENV)/bin/python),$(BIN)/python,$(PYTHON))
CALM := env -u MPLBACKEND OMP_NUM_THREADS=1 TQDM_DISABLE=1 HF_HUB_OFFLINE=1 PYTHONHASHSEED=0 \
	PYTHONDONTWRITEBYTECODE=1 XDG_CONFIG_HOME="$(CURDIR)/out/no-config"
PYTEST := $(CALM) $(BIN)/python -m pytest -p no:cacheprovider -n 2 --no-header -rs
EXPORT := $(CALM) $(BIN)/nbdev-export && $(CALM) $(BIN)/nbdev-clean && find chapters -name '*.ipynb' \
	-not -path '*/.*' -exec $(BIN)/nbstripout --keep-id --extra-keys metadata.language_info {} +
WRITTEN := tests benchmarks _ext build.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book epub test serve export chapter lint sync unit typed untyped pages site-check lighthouse format mutants bench gpu bounds set-repo clean

help:  ## list the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1~\2/p' $(MAKEFILE_LIST) | awk -F'~' '{printf "%-12s %s\n", $$1, $$2}'

# Installs once: the stamp is newer than the two files that say what to install.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) build.py install $(VENV) $(CONSTRAINTS)

book: $(VENV)/installed  ## execute every chapter that changed and build the site into out/site
	@$(BIN)/python build.py book

epub: $(VENV)/installed  ## build the book and the same pages as an EPUB, which the site's first page then links to
	@$(BIN)/python build.py epub

test: lint unit pages  ## everything a change must pass, the book included (`make -k test` runs all in spite of failures)
	@echo "everything passed"

serve:  ## serve the built site on this machine (PORT=8000)
	@$(ANY) build.py serve "$(PORT)"

export: $(VENV)/installed  ## write transformer_lib/ from the chapters, and clean the notebooks
	@$(EXPORT)

chapter: export  ## export, execute one chapter and preview it (N=1.3 or N=attention)
	@$(BIN)/python build.py chapter "$(N)"

lint: sync  ## export in sync, style, spelling and types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet $(WRITTEN)
	$(BIN)/codespell chapters transformer_lib benchmarks tests _ext .github *.py *.md *.toml *.yml *.cff
	$(BIN)/python tests/words.py
	$(BIN)/mypy

sync: $(VENV)/installed
	@rm -rf out/sync && mkdir -p out/sync && cp -R chapters transformer_lib pyproject.toml README.md out/sync
	@cd out/sync && $(EXPORT)
	@for folder in chapters transformer_lib; do diff -rq -x __pycache__ -x '.*' $$folder out/sync/$$folder; done \
		| { ! grep .; } || { echo "the export is not in sync: run make export"; exit 1; }

unit: typed untyped  ## the tests that need no built book

# Every test is in one of two runs: with signatures enforced, and, for tests that break them on purpose, without.
typed: $(VENV)/installed
	$(PYTEST) tests --ignore=tests/test_site.py -m "not bad_input and not plain" \
		--jaxtyping-packages=transformer_lib,beartype.beartype

untyped: $(VENV)/installed
	$(PYTEST) tests --ignore=tests/test_site.py -m "bad_input or plain"

pages: book  ## the tests of the built pages
	$(PYTEST) tests/test_site.py

# Needs node, npm and Chromium; the two npm packages go to out/browser.
site-check: book  ## open every built page in Chromium: accessibility, links, weight, phone and paper
	@npm install --silent --no-audit --no-fund --prefix out/browser playwright-core@1.65.1 axe-core@4.14.1
	BOOK_BROWSER=insist $(PYTEST) tests/test_site.py -k browser

# Needs what site-check needs; takes about fifteen minutes, and a machine that does nothing else.
lighthouse: book  ## let Lighthouse measure five pages of the site; writes results/lighthouse.json
	@npm install --silent --no-audit --no-fund --prefix out/browser lighthouse@12.8.2
	$(BIN)/python -m benchmarks.lighthouse results/lighthouse.json

format: $(VENV)/installed  ## format the Python files that are written by hand
	$(BIN)/ruff format $(WRITTEN)

mutants: $(VENV)/installed  ## break the library in many small ways; the tests must notice each
	$(BIN)/python tests/mutate.py

bench: $(VENV)/installed out/peers/installed.txt  ## measure the library against its peers (ARGS="--suite generation")
	PYTHONPATH="$(CURDIR)/out/peers" $(BIN)/python -m benchmarks $(ARGS)

gpu: $(VENV)/installed  ## all that needs a GPU, in at most 8 minutes; writes results/gpu-*.json (ARGS="--dry")
	$(BIN)/python -m benchmarks.gpu $(ARGS)

out/peers/installed.txt: benchmarks/requirements.txt
	rm -rf out/peers
	$(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check --target out/peers -r $<
	cp $< $@

bounds:  ## the unit tests with the oldest releases allowed, or VERSIONS=colab (downloads a second torch)
	@mkdir -p out && $(PYTHON) build.py constraints $(VERSIONS) > out/$(VERSIONS).txt
	$(MAKE) unit VENV=out/$(VERSIONS) CONSTRAINTS=out/$(VERSIONS).txt

set-repo:  ## write the repository's address everywhere (URL=https://github.com/...)
	@$(ANY) build.py set-repo "$(URL)"

clean:  ## remove what was built (out/); the environment stays, `rm -r .venv` removes it
	rm -rf out build *.egg-info
