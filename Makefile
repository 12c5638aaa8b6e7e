# Every target sets up .venv by itself, and again only when its inputs changed.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
# Large pages for tensors: training takes some 5 % less time. Only Linux reads it.
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
unexport PYTHONDONTWRITEBYTECODE  # else each process compiles PyTorch anew: .venv comes without compiled modules

.DEFAULT_GOAL := help
.PHONY: help demo lab test oldest newest lessons site results bench readme clean

help:  ## list the targets
	@grep -hE '^[a-z ]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/ready: settings.ini setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready  ## fine-tune NER and sentiment on the bundled model and corpora, print the table
	$(BIN)/python bench/demo.py

lab: .venv/ready  ## open the lessons in JupyterLab
	$(BIN)/ft-course lab

lessons: .venv/ready  ## run every lesson that changed since its last run
	$(BIN)/python -m ft_course.teach.lessons

site: .venv/ready  ## build the web site into _site/
	$(BIN)/python -m ft_course.teach.site

test: site  ## run every lesson, build the site, run the tests
	$(BIN)/python -m pytest tests -n 2 --dist worksteal -q

# Two more environments, from settings.ini without constraints.txt; torch's wheels there bring some gigabytes.
.venv-oldest/ready: RESOLUTION = lowest-direct
.venv-newest/ready: RESOLUTION = highest
.venv-%/ready: settings.ini setup.py .venv/ready
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) .venv-$*
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION) --editable '.[offline,lab,tests]'
	touch $@

oldest newest: %: .venv-%/ready  ## run the library's tests with the oldest versions that settings.ini allows, or the newest there are
	.venv-$*/bin/python -m pytest tests --fast -n 2 --dist worksteal -q

results: .venv/ready  ## write the numbers that lessons and README quote
	$(BIN)/python bench/demo.py --write
	$(BIN)/python bench/curves.py
	$(BIN)/python bench/runs.py
	$(BIN)/python bench/pretrained.py
	$(BIN)/python bench/long.py
	$(BIN)/python bench/overfitting.py
	$(BIN)/python bench/comparison.py

bench: .venv/ready  ## measure side by side with other libraries
	$(BIN)/python bench/metrics.py
	$(BIN)/python bench/batching.py
	$(BIN)/python bench/trainer.py
	$(BIN)/python bench/lora.py

readme: .venv/ready  ## write README.md from nbs/index.ipynb, and draw the map of the course
	$(BIN)/python -m ft_course.teach.front_page

clean:  ## remove what was built, keep .venv
	rm -rf build dist _site
