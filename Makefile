# `make demo` and `make test` need nothing but Python 3.11 and make: each builds the virtual environment it runs in.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo pictures test torch test-torch compilers test-programs programs site test-browser test-buckets test-sensors test-slow lint format bench clean

# Installed once, and again when a list of requirements changes.
$(VENV)/.run: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/.run
	$(BIN)/python train.py --config=configs/demo.py --workdir=runs/demo
	$(BIN)/python -m barlow_jax.demo --workdir=runs/demo

# What README.md and docs/ show, anew, of the demo's run; its page in Chromium, which the system has.
pictures: $(VENV)/.run $(VENV)-browser/.browser
	$(BIN)/python benchmarks/pictures.py --run=runs/demo --out=docs/pictures
	$(VENV)-browser/bin/python benchmarks/page_picture.py --run=runs/demo --out=docs/pictures/report.png

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What beside these two needs packages of its own has an environment of its own, of the lists that its target names.
define environment
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		$(1) $(addprefix -r ,$(filter-out requirements.txt,$^))
	touch $@
endef

# Against PyTorch, torchvision and timm themselves, in an environment of its own.
$(VENV)-torch/.torch: requirements-torch.txt requirements-dev.txt requirements.txt
	$(call environment,$(if $(INDEX),--extra-index-url $(INDEX)))

torch: $(VENV)-torch/.torch

test-torch: torch
	$(VENV)-torch/bin/python -m pytest -rs tests/weights/test_in_torch.py tests/weights/test_onnx.py

# The train step as TPUs and GPUs would run it, by their compilers, in an environment of its own.
$(VENV)-programs/.programs: requirements-programs.txt requirements-dev.txt requirements.txt
	$(call environment)

compilers: $(VENV)-programs/.programs

test-programs: compilers
	$(VENV)-programs/bin/python -m pytest -rs -m programs tests/planning/test_programs.py

# What is committed of these programs, tests/fixtures/programs.json, anew.
programs: compilers
	PYTHONPATH=.:tests $(VENV)-programs/bin/python tests/compiled_steps.py

# The page of runs in Chromium, which the system has: apt-get install chromium.
$(VENV)-browser/.browser: requirements-browser.txt requirements-dev.txt requirements.txt
	$(call environment)

test-browser: $(VENV)-browser/.browser
	$(VENV)-browser/bin/python -m pytest -rs -m slow tests/results/test_browser.py

# Images from s3:// and gs://, by servers that stand in for them, in an environment of its own; from az:// where npm's
# azurite-blob is in PATH or AZURITE names it.
$(VENV)-buckets/.buckets: requirements-buckets.txt requirements-dev.txt requirements.txt
	$(call environment)

BUCKETS := $(addprefix tests/data/test_,blocks.py remote.py remote_emulated.py resume.py) \
	$(addprefix tests/run/test_,buckets.py buckets_emulated.py) tests/weights/test_weights_in_buckets.py

test-buckets: $(VENV)-buckets/.buckets
	$(VENV)-buckets/bin/python -m pytest -rs -m 'slow or not slow' $(BUCKETS)

# DICOM files and TIFFs of many bands, in an environment of its own.
$(VENV)-sensors/.sensors: requirements-sensors.txt requirements-dev.txt requirements.txt
	$(call environment)

test-sensors: $(VENV)-sensors/.sensors
	$(VENV)-sensors/bin/python -m pytest -rs tests/data/test_sensors.py tests/data/test_sensor_stats.py

# The docs site, in site/: open site/index.html.
$(VENV)-site/.site: requirements-site.txt
	$(call environment)

site: $(VENV)-site/.site
	NO_MKDOCS_2_WARNING=1 PATH=$(VENV)-site/bin:$$PATH $(VENV)-site/bin/mkdocs build --strict

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.run
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/views_cost.py
	test -z "$(IMAGES)" || $(BIN)/python benchmarks/input_pipeline.py --images="$(IMAGES)"

clean:
	rm -rf $(VENV) $(VENV)-torch $(VENV)-programs $(VENV)-browser $(VENV)-buckets $(VENV)-sensors $(VENV)-site site runs
