# Two commands on a fresh machine with git, make and python3 (3.11 or newer, with venv):
#   make demo    plays the main job with real processes
#   make test    runs the whole suite
# and what shows or takes more:
#   make incidents plays a clone, a snapshot, a deleted ledger and a lost reply, with the statement before and after
#   make bench   measures against plain ONNX Runtime, as ratios in one run, into build/bench.json
#   make runtimes runs the session tests on the oldest and the newest ONNX Runtime
#   make torture kills device processes 1,000 times, plays 2,000 lives of a device, and takes its power 12,000 times
#   make simulate SEEDS=1000..2000 plays fleets of devices against the server, one from each seed
#   make year SEED=1 plays a year of billing in which everything goes wrong, and audits every document offline
PYTHON ?= python3
SEEDS ?= 0..1000
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo incidents test bench runtimes torture simulate year lint format clean
.DEFAULT_GOAL := test

$(VENV)/demo.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[device,server,demo]'
	touch $@

$(VENV)/test.ready: $(VENV)/demo.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[device,server,postgresql,stripe,demo,test]'
	touch $@

demo: $(VENV)/demo.ready
	$(BIN)/python examples/demo.py

incidents: $(VENV)/demo.ready
	$(BIN)/python examples/incidents.py

test: $(VENV)/test.ready lint
	$(BIN)/python -m pytest -q --numprocesses=2 --dist=worksteal

bench: $(VENV)/test.ready
	$(BIN)/python tests/bench/run.py

runtimes: $(VENV)/test.ready
	$(BIN)/python tests/runtimes/run.py

torture: $(VENV)/test.ready
	METERKIT_TEST_KILLS=1000 $(BIN)/python -m pytest -q -s tests/faults/test_sigkill.py
	METERKIT_TEST_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/faults/test_device_machine.py
	METERKIT_TEST_POWER_STATES=6000 $(BIN)/python -m pytest -q tests/faults/test_power_loss_replayed.py

simulate: $(VENV)/test.ready
	$(BIN)/python tests/simulator.py $(SEEDS)

year: $(VENV)/test.ready
	$(BIN)/python tests/year.py $(SEED)

lint: $(VENV)/test.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
