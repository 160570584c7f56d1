# Every target runs from this folder. Never start Python inside hear_transformers/: its ast.py would hide the standard one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHARED ?= ../shared
# Modules are compiled when they are first imported: most of those installed never are.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile

.DEFAULT_GOAL := help
.PHONY: help demo quick quick-newest quick-oldest test test-oldest check format release-check bench bench-bulk bench-feed bench-cuda sizes measure study claims sweep train hear bench-hear hear-results docs links picture clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.stamp-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -e '.$(filter-out .,$(EXTRA))'
	touch $@ $(INCLUDED:%=$(VENV)/.stamp-%)

$(VENV)/.stamp-run: EXTRA =
$(VENV)/.stamp-quick: EXTRA = [quick]
$(VENV)/.stamp-quick: INCLUDED = run
$(VENV)/.stamp-test: EXTRA = [test]
$(VENV)/.stamp-test: INCLUDED = run quick
$(VENV)/.stamp-check: EXTRA = [check]
$(VENV)/.stamp-check: INCLUDED = run
$(VENV)/.stamp-docs: EXTRA = [docs]
$(VENV)/.stamp-docs: INCLUDED = run
$(VENV)/.stamp-dev: EXTRA = [dev]
$(VENV)/.stamp-dev: INCLUDED = run quick test check docs

# Environments for another PyTorch see the other packages of .venv, which are not installed twice. Everything that PyTorch
# itself needs is installed with it: it looks for its libraries beside itself. Of packages of .venv that are made for that
# PyTorch alone pip says that they conflict; the quick tests use none of them.
define beside
test -x $(1)/bin/python || $(BIN)/python -m venv $(1)
$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	> $$(echo $(1)/lib/python*/site-packages)/venv.pth
endef

# The oldest that pyproject.toml allows.
TORCH_OLDEST := $(shell sed -n 's/^    "torch>=\([0-9.]*\)",$$/\1/p' pyproject.toml)

.venv-newest/.stamp: LIBRARIES = torch
.venv-oldest/.stamp: LIBRARIES = 'torch==$(TORCH_OLDEST).*'
.venv-newest/.stamp .venv-oldest/.stamp: pyproject.toml | $(VENV)/.stamp-quick
	$(call beside,$(@D))
	$(@D)/bin/python $(PIP_INSTALL) --upgrade --ignore-installed $(LIBRARIES)
	touch $@

HEAR := .venv-hear
HEAR_BIN := $(HEAR)/bin

# HEAR's harness has an environment of its own, which sees the packages of .venv as well, PyTorch above all: it is not
# installed twice. heareval and hearvalidator come without what they require: NumPy 1.19 and numba 0.48 of 2020, which
# install on no Python that PyTorch is made for now, and TensorFlow. What they run with is our extra "hear".
$(HEAR)/.stamp: pyproject.toml | $(VENV)/.stamp-run
	$(call beside,$(HEAR))
	$(HEAR_BIN)/python $(PIP_INSTALL) 'hear_transformers[hear]'
	$(HEAR_BIN)/python $(PIP_INSTALL) --no-deps heareval==2021.1.3 hearvalidator==2021.0.2
	touch $@

# HEAR's baseline; librosa, which it needs, is one of the harness' packages.
$(HEAR)/.stamp-baseline: $(HEAR)/.stamp
	$(HEAR_BIN)/python $(PIP_INSTALL) --no-deps hearbaseline==2021.1.1
	touch $@

demo: $(VENV)/.stamp-run  ## install, then embed the example recording with layer 8 of the embedded model
	$(BIN)/embed-audio tests/data/example.wav --layer 8 --out demo_output --overwrite

# Most tests keep one core busy, so a process for each of two cores takes about half the time. One thread in each: more
# threads than cores wait for each other awake, which made small networks up to twenty times as slow. Compiled modules are
# kept, whatever the environment says: hundreds of processes that tests start would each compile the package for 0.5 s.
WORKERS ?= 2
pytest_of = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(1)/bin/python -m pytest -n $(WORKERS) --dist worksteal
PYTEST = $(call pytest_of,$(VENV))
QUICK = -m "not slow" --durations=10

quick: $(VENV)/.stamp-quick  ## a verdict in a minute: all tests but the slow ones, without TensorFlow or other packages' models
	$(PYTEST) $(QUICK)

# Tests of which PyTorch decides nothing, so that once, in `make test`, is enough: journals, tables, disks, downloads, the
# corpus, pages, what is drawn or counted from embeddings, and programs that ask for them.
ANY_TORCH = $(addprefix --ignore=tests/,benchmarks cluster comparison docs evar explore mteb serve sweep training/corpus xares \
	test_architecture.py test_sklearn.py \
	$(addprefix bulk/test_,compaction.py damaged_state.py data_set_tables.py fault_drill.py full_disk.py journal.py memory.py \
	overwriting.py rows.py selections.py shards.py tables.py usage.py warnings.py) \
	$(addprefix checkpoints/test_,cards.py download.py store.py) $(addprefix cli/test_probe,.py _events.py))

quick-newest: .venv-newest/.stamp  ## the same with the newest PyTorch, but for tests of which no PyTorch decides
	$(call pytest_of,.venv-newest) $(QUICK) $(ANY_TORCH)

quick-oldest: .venv-oldest/.stamp  ## the same with the oldest PyTorch that pyproject.toml allows
	$(call pytest_of,.venv-oldest) $(QUICK) $(ANY_TORCH)

# ONNX Runtime for browsers comes from npm; without npm the page that needs it is not tested.
WEB := onnxruntime-web-$(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' hear_transformers/export/page.py).tgz

$(VENV)/$(WEB): | $(VENV)/.stamp-test
	-command -v npm > /dev/null && npm pack --silent --pack-destination $(VENV) $(subst web-,web@,$(WEB:.tgz=))

test: $(VENV)/.stamp-test $(HEAR)/.stamp $(VENV)/$(WEB)  ## install with the test extra and HEAR's harness, then run every test
	if [ -f $(VENV)/$(WEB) ]; then export ONNXRUNTIME_WEB=$(CURDIR)/$(VENV)/$(WEB); fi; \
	HEAR_PYTHON=$(CURDIR)/$(HEAR_BIN)/python $(PYTEST) --durations=25

# What a processor of 2008 has. MKL_ENABLE_INSTRUCTIONS acts on Intel's processors only (on AMD's a product of matrices was
# equal to the bit with and without it), MKL_CBWR on all; tests/networks/test_instructions.py checks that the others act.
OLDEST = ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41

test-oldest: $(VENV)/.stamp-test  ## golden answers of small networks and front ends, with the oldest instructions
	$(OLDEST) $(PYTEST) -m numeric

check: $(VENV)/.stamp-check  ## formatting, lint, types, repeated code: all but the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pylint --recursive=y hear_transformers cli tests

format: $(VENV)/.stamp-check  ## reformat the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

release-check: $(VENV)/.stamp-test  ## build wheel and sdist, install the wheel alone, import all of it, run tests from the sdist
	$(PYTEST) tests/test_package.py

bench: $(VENV)/.stamp-test  ## beside the authors' packages: equal numbers, speed ratios, share of the machine's GEMM peak
	$(BIN)/python -m hear_transformers.benchmarks.peers
	$(BIN)/python -m hear_transformers.benchmarks.card mast --device cpu --batch 1 --batch 8

BULK = $(BIN)/python -m hear_transformers.benchmarks.bulk
CLIPS ?= --clips 500

bench-bulk: $(VENV)/.stamp-test  ## clips from disk beside the network alone, errors of low precision, memory for 10 h (SHARED=folder CLIPS=options)
	$(BULK) throughput --audio $(SHARED)/data/esc10/audio $(CLIPS)
	$(BULK) precision $(if $(wildcard $(TEACHER)),--weights efficientat/mn04_as=$(TEACHER))
	$(BULK) memory
	$(BULK) start

bench-feed: $(VENV)/.stamp-test  ## from files to files with a network that does nothing, beside a bare loop of soundfile and soxr
	$(BIN)/python -m hear_transformers.benchmarks.feed

CARD = $(BIN)/python -m hear_transformers.benchmarks.card

bench-cuda: $(VENV)/.stamp-test  ## all tables of an NVIDIA card in less than eight minutes, ready for a document
	$(CARD) all

sizes: $(VENV)/.stamp-run  ## measure layers, parameters and operations of every variant into weights/sizes.json: ten minutes
	$(BIN)/python -m hear_transformers.benchmarks.sizes

measure: $(VENV)/.stamp-test  ## score the embedded models on ESC-10, spoken digits and the pitch of notes: half an hour (SHARED=folder with data/)
	for student in $(STUDENTS); do echo "$$student"; \
		$(BIN)/python -m hear_transformers.training.distil measure --data $(SHARED)/data --student $$student || exit; done

STUDY ?= ../study-run
TEACHER ?= $(SHARED)/weights/mn04_as_mAP_432.pt

CLAIMS ?= ../claims-run

claims: $(VENV)/.stamp-test  ## MAST beside AST, ATGNN with and without label graphs, on synthetic scenes, five seeds: hours on a CPU (CLAIMS=folder)
	$(BIN)/python -m hear_transformers.benchmarks.claims --data $(SHARED)/data --out $(CLAIMS) --threads $(WORKERS)

study: $(VENV)/.stamp-test  ## small networks of all families on ESC-10, from scratch: hours on a CPU (STUDY=folder TEACHER=checkpoint)
	$(BIN)/python -m hear_transformers.benchmarks.study --data $(SHARED)/data/esc10 --out $(STUDY) --weights $(TEACHER)

SWEEP ?= ../sweep-run
SWEEPING = $(BIN)/hear-transformers sweep --out $(SWEEP)
MN04 = efficientat/mn04_as=$(TEACHER)
FLOOR = passt/passt_s_p16_s16_128_ap468
SCENES = esc10=$(SHARED)/data/esc10/labels.csv digits=$(SWEEP)/digits.csv \
	--columns 'path=audio/{filename},labels=label,fold=fold' --columns path=path,labels=label,fold=speaker

# Of the digits the first 15 takes, as in `make measure`. Windows and hops are tried with the small networks alone, and of
# events, where each frame is a row to fit, few layers.
sweep: $(VENV)/.stamp-test  ## layers, windows and hops of three networks on ESC-10, digits and events: half an hour (SHARED=folder SWEEP=folder)
	mkdir -p $(SWEEP)
	awk -F, -v audio=$(abspath $(SHARED))/data/fsdd/audio 'NR == 1 { print "path,label,speaker" } \
		NR > 1 { split($$1, name, /[_.]/); if (name[3] < 15) print audio "/" $$1 "," $$2 "," $$3 }' \
		$(SHARED)/data/fsdd/labels.csv > $(SWEEP)/digits.csv
	test -d $(SWEEP)/tasks || $(BIN)/python $(SHARED)/tools/build_hear_tasks.py --out $(SWEEP)/tasks --sr 32000 --tasks sed
	$(SWEEPING) $(SCENES) --model tiny --model $(MN04) --random-model $(FLOOR)
	$(SWEEPING) $(SCENES) --model tiny --model $(MN04) --layers 0,4,8,12,-1,mel,all+mel --pool meanstd \
		--framing windowed --window-ms 160,640 --hop-ms 100,400
	$(SWEEPING) events=$(SWEEP)/tasks/esc10_fsdd_events-v1.0.0-full --model tiny --model $(MN04) \
		--layers 4,8,12,all+mel --pool mean --framing native --window-ms 2000 --hop-ms 50
	mkdir -p weights/study
	cp -r $(SWEEP)/report.html $(SWEEP)/results.md $(SWEEP)/results.csv $(SWEEP)/plots weights/study

STUDENT ?= tiny
STUDENTS ?= tiny mast_mini atgnn_mini
RUN ?= ../$(STUDENT)-run
SLICE_MINUTES ?=
DEVICE ?= cpu

train: $(VENV)/.stamp-test  ## train tiny, mast_mini or atgnn_mini without real audio: hours on a CPU, resumable; needs espeak-ng (STUDENT=name RUN=folder TEACHER=checkpoint SLICE_MINUTES=8)
	$(BIN)/python -m hear_transformers.training.distil train --student $(STUDENT) --out $(RUN) --device $(DEVICE) \
		--num-workers $(WORKERS) --threads $(WORKERS) $(if $(wildcard $(TEACHER)),--teacher $(TEACHER)) \
		$(if $(SLICE_MINUTES),--slice-minutes $(SLICE_MINUTES))

TASKS ?= ../tasks
SYSTEMS ?= hear_transformers.tiny
HEAR_OUT ?= ../hear-run
BENCHMARK = $(HEAR_BIN)/python -m hear_transformers hear run

hear: $(HEAR)/.stamp  ## score SYSTEMS on HEAR's tasks with its official harness (TASKS=folder SYSTEMS="MODULE .." HEAR_OUT=folder)
	$(BENCHMARK) --tasks-dir $(TASKS) --out $(HEAR_OUT) $(SYSTEMS)

bench-hear: $(HEAR)/.stamp  ## our embedding stage beside HEAR's on TASKS: equal numbers, ratio of times
	$(HEAR_BIN)/python -m hear_transformers.benchmarks.heareval --tasks-dir $(TASKS) $(SYSTEMS)

# The log-mel baseline has the short windows that PaSST has for events; with tiny's 2 s it would find no onset.
RESULTS = hear_transformers.tiny 'hear_transformers.efficientat=$(TEACHER):{"variant":"mn04_as"}' \
	'hear_transformers.tiny:{"layer":"mel","pool":"meanstd","window_ms":160}' hearbaseline.naive

hear-results: $(HEAR)/.stamp-baseline  ## HEAR-format tasks of ESC-10 and spoken digits, and four systems on them: an hour (SHARED=folder)
	test -e $(HEAR_OUT)/.tasks || $(BIN)/python $(SHARED)/tools/build_hear_tasks.py --out $(HEAR_OUT)/tasks --sr 16000 32000 44100
	touch $(HEAR_OUT)/.tasks
	$(BENCHMARK) --tasks-dir $(HEAR_OUT)/tasks --out $(HEAR_OUT)/results --param-grid hear_transformers/harness/grids.json $(RESULTS)
	$(BIN)/python -m hear_transformers.benchmarks.pages --results $(HEAR_OUT)/results

SITE = $(BIN)/python -m sphinx -c docs --fresh-env --fail-on-warning --keep-going -q .

docs: $(VENV)/.stamp-docs  ## build the documentation site, site/index.html: a minute; it needs no network
	rm -rf site
	$(SITE) -b html site

links: $(VENV)/.stamp-docs  ## ask every address in the pages whether it is there; needs a network
	$(SITE) -b linkcheck site/links

PICTURE ?= ../picture

# The README's: a page of explore, seen by a browser.
picture: $(VENV)/.stamp-test  ## draw docs/images/map.png: ESC-10 as explore shows it (SHARED=folder TEACHER=checkpoint PICTURE=folder)
	mkdir -p $(PICTURE)
	$(BIN)/embed-audio $(SHARED)/data/esc10/audio --weights $(TEACHER) --layer features --out $(PICTURE)/esc10.parquet
	$(BIN)/hear-transformers explore $(PICTURE)/esc10.parquet --labels-from $(SHARED)/data/esc10/labels.csv \
		--columns path=audio/{filename},labels=label --audio $(SHARED)/data/esc10 --map pca --sound link
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,620 --virtual-time-budget=4000 \
		--screenshot=$(CURDIR)/docs/images/map.png file://$(abspath $(PICTURE))/esc10.parquet.html

clean:  ## remove the virtual environments and what was built
	rm -rf $(VENV) $(HEAR) .venv-newest .venv-oldest build dist site *.egg-info demo_output
