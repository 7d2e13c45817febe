# Tollgate. README's two commands are `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
# One selection of packages everywhere: another one would change features and compile twice.
BUILD := $(CARGO) build --workspace --locked
NOT_BUILT = @echo "make $@: not built yet; see CHANGELOG.md for what is" >&2; exit 2

.PHONY: help demo run test bench load chaos fuzz

help:
	@echo "make demo   real payments through a software token, faults included; one table"
	@echo "make run    the same world left running, with a curl line to try"
	@echo "make test   format, lints, every test"
	@echo "make bench  CPU per operation beside its floors -> var/bench.json"
	@echo "load, chaos, fuzz: not built yet"

demo: softhsm
	$(BUILD)
	target/debug/demo play

run: softhsm
	$(BUILD)
	exec target/debug/demo run

test: softhsm
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(BUILD)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    $(CARGO) nextest run --workspace --locked; \
	else \
	    $(CARGO) test --workspace --locked --lib --bins --tests; \
	fi
	$(CARGO) test --workspace --locked --doc

bench: softhsm
	$(CARGO) build --workspace --locked --release --bins --examples
	target/release/bench

.PHONY: softhsm
softhsm:
	@softhsm/install.sh

# Not first in its line: `load` is a directive of make.
chaos load fuzz:
	$(NOT_BUILT)
