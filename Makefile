# spikec: `make` alone prints what there is. A recipe that needs Python needs .venv, which is made on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2
FUZZ_SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help venv lava demo test test-long test-lava-all check format bench bench-all bench-counts bench-real bench-ann bench-lava bench-passes bench-mapping bench-sparsity bench-kernels fuzz clean
.PHONY: distclean test-lava-graphs

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

venv: $(READY) ## make .venv and install everything in it

# Torch goes first and by itself: pip then takes the build the constraints name before anything else asks for "any torch".
# Norse compiles a library for the torch it finds: built apart, or found built, that is the newest one and not the one that runs.
# Debian splits ensurepip from python3; there the virtual environment gets its pip from the pip outside.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "spikec needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
	  $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,frameworks,examples]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps spikingjelly sinabs
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --no-build-isolation --no-cache-dir norse
	@touch $@

# Lava is optional: where it cannot be had everything else still works, and the tests say why they skip.
lava: $(READY)
	@$(BIN)/spikec setup lava --if-missing || echo "lava: not installed (spikec setup lava)"

demo: lava ## train-to-Loihi walk on real handwritten digits, all four engines, into build/digits/
	$(BIN)/python examples/digits/demo.py

test: lava ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) -m "not long"

test-long: lava ## the same suite with the longer sweeps and more random graphs
	SPIKEC_LONG=1 $(BIN)/python -m pytest -n $(JOBS)

test-lava-all: lava ## every held-out digit on the Lava simulator
	SPIKEC_LAVA_ALL=1 $(BIN)/python -m pytest -n $(JOBS) -m lava

test-lava-graphs: lava ## 200 random networks for Loihi 2 on the Lava simulator and every other engine
	SPIKEC_LAVA_GRAPHS=1 $(BIN)/python -m pytest -n $(JOBS) tests/agreement/test_chip_graphs.py

check: $(READY) ## ruff, mypy --strict, the layout rules and the support table
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/layout.py
	$(BIN)/python tools/support_page.py --check
	$(BIN)/python tools/source_tree.py --mypy

format: $(READY) ## rewrite the Python files in the house style
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(READY) ## measure speed: against hand-written C, and against the quicker of the other tools
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/compare.py

bench-all: $(READY) ## every contender on every network; renews the table in README.md and its plot (ten minutes)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/compare.py --all --write

bench-counts: $(READY) ## instructions an inference, against the stored baseline
	$(BIN)/python benchmarks/counts.py

bench-real: $(READY) ## every real case of ../shared/data, its figure and what is measured
	$(BIN)/python benchmarks/realworld.py

fuzz: $(READY) ## ten minutes (FUZZ_SECONDS) of libFuzzer over the emitted C's events and weights; keeps what reaches new code
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)
bench-mapping: $(READY) ## networks onto the cores of Loihi 2: cores, messages, hops, seconds
	$(BIN)/python benchmarks/mapping.py

bench-passes: $(READY) ## what pruning, few bits, early answers, … cost and save, six tasks (hours); resumes; renews docs/optimizing.md
	$(BIN)/python benchmarks/passes.py --write

bench-sparsity: $(READY) ## what each pattern of pruning saves in time and bytes of the emitted C; layers of values
	$(BIN)/python benchmarks/sparsity.py

bench-kernels: $(READY) ## what a connection costs in the emitted C: convolutions of every kind, delays
	$(BIN)/python benchmarks/kernels.py

bench-lava: lava ## networks on Lava against the reference, C and published numbers, number for number
	$(BIN)/python benchmarks/lava.py

bench-ann: $(READY) ## accuracy over the steps of an ANN made to spike, 10,000 MNIST digits (some minutes)
	$(BIN)/python benchmarks/ann_to_snn.py

clean: ## remove build/ and caches
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf $(VENV)
