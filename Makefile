# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo study study-text study-prosqa test check families bench bench-gpu docs lint clean

$(READY): constraints.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e '.[test]'
	touch $@

# Two processes on this machine, ZeRO-2: CoT, then Coconut in stages, and the same model without reasoning.
DEMO := runs/demo
LAUNCH := $(BIN)/deepspeed --num_gpus 2 train.py

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/multicoco prepare scenes --out $(DEMO)/scenes --kinds tile
	$(BIN)/multicoco prepare model --data $(DEMO)/scenes/aokvqa_v1p0_train.json --out $(DEMO)/model
	$(LAUNCH) args/scenes_cot.yaml
	$(LAUNCH) args/scenes_coconut.yaml
	$(LAUNCH) args/scenes_vanilla.yaml
	$(LAUNCH) args/scenes_vanilla_eval.yaml
	$(LAUNCH) args/scenes_cot_eval.yaml
	$(LAUNCH) args/scenes_coconut_eval.yaml
	$(BIN)/multicoco summarize --out $(DEMO)/summary.json \
		--vanilla $(DEMO)/vanilla_eval --cot $(DEMO)/cot_eval --coconut $(DEMO)/coconut_eval \
		--trained $(DEMO)/cot $(DEMO)/coconut $(DEMO)/vanilla
	$(BIN)/multicoco report $(DEMO) --out $(DEMO)/report.html

# Do the thoughts reason? Five ways of training, two seeds, questions like those trained on and unlike them.
STUDY := runs/studies
SCENES := $(BIN)/multicoco prepare scenes --kinds tile --out $(STUDY)/data
UNLIKE := --train 0 --test 0 --apart-from $(STUDY)/data/scenes

study: $(READY)
	$(SCENES)/scenes
	$(SCENES)/hops_4 --hops 4 $(UNLIKE)
	$(SCENES)/distractors --distractors 4 $(UNLIKE)
	test -d $(STUDY)/data/model || \
		$(BIN)/multicoco prepare model --data $(STUDY)/data/scenes/aokvqa_v1p0_train.json --out $(STUDY)/data/model
	$(BIN)/multicoco study args/studies/scenes.yaml --launcher "$(LAUNCH:train.py=)"

# The same where nothing is seen: the scenes in sentences. A text model this small first has to learn to look facts up.
TEXT := $(STUDY)/data/text
SENTENCES := $(BIN)/multicoco prepare scenes --kinds tile --text --test 0 --out $(TEXT)

study-text: $(READY)
	$(SENTENCES)/few --tiles 5 --hops 4 --train 64000 --seed 1
	$(SENTENCES)/scenes --tiles 5 --train 8000 --apart-from $(TEXT)/few/scenes_train.json
	$(SENTENCES)/hops_4 --tiles 5 --hops 4 --train 0 --seed 2 --apart-from $(TEXT)/few/scenes_train.json \
		$(TEXT)/scenes/scenes_train.json
	$(SENTENCES)/tiles_9 --train 0
	$(SENTENCES)/words_scenes --tiles 5 --hops 4 --train 16000 --val 100
	$(BIN)/multicoco prepare prosqa --out $(TEXT)/words_prosqa --nodes 6 --hops 2 --shape tree --same-depth \
		--names 10 --n 8000 --val 100 --test 0
	test -d $(TEXT)/model || $(BIN)/multicoco prepare model --family text_without_chats \
		--config args/studies/text_model.yaml --out $(TEXT)/model
	$(LAUNCH) args/studies/text_base.yaml
	$(BIN)/multicoco study args/studies/text.yaml

# ProsQA's graphs, small ones: controls, and methods. The text model first has to learn to write the steps.
PROSQA := $(STUDY)/data/prosqa
GRAPHS := $(BIN)/multicoco prepare prosqa --shape tree --same-depth --test 0 --out $(PROSQA)

study-prosqa: $(READY)
	$(GRAPHS)/many --nodes 9 --hops 2 3 --n 128000 --val 500 --seed 1
	$(GRAPHS)/paths_2 --nodes 7 --hops 2 --n 16000 --val 500 --seed 2 --apart-from $(PROSQA)/many/prosqa_train.json
	$(GRAPHS)/nodes_9 --nodes 9 --hops 2 --n 0 --val 500 --seed 4 --apart-from $(PROSQA)/many/prosqa_train.json
	$(GRAPHS)/paths_3 --nodes 9 --hops 3 --n 0 --val 500 --seed 3 \
		--apart-from $(PROSQA)/many/prosqa_train.json $(PROSQA)/paths_2/prosqa_train.json
	test -d $(PROSQA)/model || $(BIN)/multicoco prepare model --family text_without_chats \
		--config args/studies/prosqa_base.yaml --out $(PROSQA)/model
	$(LAUNCH) args/studies/prosqa_base.yaml
	$(BIN)/multicoco study args/studies/prosqa.yaml
	$(BIN)/multicoco study args/studies/methods_prosqa.yaml

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# the inner loop: everything but the tests that start processes
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not distributed"

BENCHMARKS := latent_overhead baselines methods cached_attention generation checkpointing gathering plan_memory startup \
	data_memory features_cache length_groups evaluation_batching collectives step_overhead

# every model family through DeepSpeed's launcher, on data in published forms: docs/models.md
families: $(READY)
	$(BIN)/python benchmarks/families.py

bench: $(READY)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

# the pages of docs/ as a site, to be opened in a browser: site/index.html
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Takes no network and no $(READY): torch, transformers and triton as they are there. Ten minutes on one GPU of 80 GB.
bench-gpu:
	PYTHONPATH=$(CURDIR):$(CURDIR)/kernels $(PYTHON) benchmarks/gpu.py --repeats 5

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .import_linter_cache
