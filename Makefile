# Tollgate. README's two commands are `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
# One selection of packages everywhere: another one would change features and compile twice.
BUILD := $(CARGO) build --workspace --locked
NOT_BUILT = @echo "make $@: not built yet; see CHANGELOG.md for what is" >&2; exit 2

.PHONY: help demo run test test-opencryptoki bench load chaos kills mutants fuzz

help:
	@echo "make demo   real payments through a software token, faults included; one table"
	@echo "make run    the same world left running, with a curl line to try"
	@echo "make test   format, lints, every test"
	@echo "make test-opencryptoki  PINs and MACs inside a second real token"
	@echo "make bench  CPU per operation beside its floors -> var/bench.json"
	@echo "make chaos  faults on both links; one table -> var/chaos.json"
	@echo "make kills  sudden deaths under load, on both stores -> var/kills.json"
	@echo "make mutants  whether the tests notice six broken promises"
	@echo "load, fuzz: not built yet"

demo: softhsm
	$(BUILD)
	target/debug/demo play

run: softhsm
	$(BUILD)
	exec target/debug/demo run

test: softhsm postgres python syslog-ng
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(BUILD)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    target/debug/with-postgres $(CARGO) nextest run --workspace --locked; \
	else \
	    target/debug/with-postgres $(CARGO) test --workspace --locked --lib --bins --tests; \
	fi
	$(CARGO) test --workspace --locked --doc

# Not part of `test`: it starts a daemon and keeps keys in /var/lib/opencryptoki while it runs.
test-opencryptoki:
	$(BUILD)
	@tests/opencryptoki.sh

bench: softhsm postgres
	$(CARGO) build --workspace --locked --release --lib --bins --examples
	target/release/with-postgres target/release/bench

chaos: softhsm
	$(BUILD)
	target/debug/chaos

kills: softhsm postgres
	$(BUILD)
	target/debug/kills

# Not part of `test`: it compiles the gateway seven times.
mutants: postgres
	$(BUILD)
	tests/mutants/run.sh

.PHONY: softhsm postgres python
softhsm:
	@softhsm/install.sh

# One cluster around all tests; each has a database of its own in it.
postgres:
	@cluster/install.sh

# Two stories of the system tests look at the database, and lock it, from another program.
python:
	@python3 -c 'import sqlite3' 2>/dev/null || { \
	    echo "make test: installing python3 (its sqlite3 module)"; \
	    as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; else sudo "$$@"; fi; }; \
	    as_root apt-get update -qq && as_root apt-get install -y -qq python3; }

# A story of the system tests sends it records. Only the program is used: no service is started.
.PHONY: syslog-ng
syslog-ng:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"; \
	if ! command -v syslog-ng >/dev/null; then \
	    echo "make test: installing syslog-ng (package syslog-ng-core)"; \
	    as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; else sudo "$$@"; fi; }; \
	    if command -v apt-get >/dev/null; then \
	        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq; \
	        as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	            apt-get install -y -qq --no-install-recommends syslog-ng-core; \
	    elif command -v brew >/dev/null; then \
	        brew install --quiet syslog-ng; \
	    else \
	        echo "make test: install syslog-ng by hand" >&2; exit 1; \
	    fi; \
	fi

# Not first in its line: `load` is a directive of make.
fuzz load:
	$(NOT_BUILT)
