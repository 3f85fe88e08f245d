# The Executable Transformer: `make book` builds it, `make test` checks it. Everything is made under .venv/ and out/.
# The steps themselves are in tasks.py.

PYTHON ?= python3
N ?=
PORT ?= 8000
URL ?=
ARGS ?=
TASK := .venv/bin/python tasks.py

.DEFAULT_GOAL := help
.PHONY: help book test serve export chapter lint unit format mutants bench gpu set-repo clean

help:  ## list the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1~\2/p' $(MAKEFILE_LIST) | awk -F'~' '{printf "%-12s %s\n", $$1, $$2}'

# Installs once: the stamp is newer than the two files that say what to install.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) tasks.py install

book: .venv/installed  ## execute every chapter and build the site into out/site
	@$(TASK) book

test: .venv/installed  ## everything a change must pass, the book included
	@$(TASK) test

serve: .venv/installed  ## serve the built site on this machine (PORT=8000)
	@$(TASK) serve $(PORT)

export: .venv/installed  ## write transformer_lib/ from the chapters, and clean the notebooks
	@$(TASK) export

chapter: .venv/installed  ## export, execute one chapter and preview it (N=04 or N=plots)
	@$(TASK) chapter $(N)

lint: .venv/installed  ## export in sync, style, spelling and types
	@$(TASK) lint

unit: .venv/installed  ## the tests that need no built book
	@$(TASK) unit

format: .venv/installed  ## format the Python files that are written by hand
	@$(TASK) format

mutants: .venv/installed  ## break the library in many small ways; the tests must notice each
	@$(TASK) mutants

bench: .venv/installed  ## measure the library against its peers (ARGS="--suite generation")
	@$(TASK) bench $(ARGS)

gpu: .venv/installed  ## all that needs a GPU, in at most 8 minutes; writes results/gpu-*.json (ARGS="--dry")
	@$(TASK) gpu $(ARGS)

set-repo: .venv/installed  ## write the repository's address everywhere (URL=https://github.com/...)
	@$(TASK) set-repo $(URL)

clean:  ## remove what was built (out/); the environment stays, `rm -r .venv` removes it
	rm -rf out build *.egg-info
