# `make demo` shows the tool at work, `make test` tests it; both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/medattack
REFERENCES := .venv-references
N ?= 5000
SEED ?= 0
JOBS ?= 2
# tests of every registered name run with the shape of every tensor checked, which slows all Python down
CONTRACTS := tests/test_contracts.py tests/test_held.py tests/threat tests/metrics tests/numerics \
	tests/detectors/test_registered_detectors.py tests/defences/test_registered_defences.py \
	tests/certificates/test_certificates.py

unexport PYTHONDONTWRITEBYTECODE # with it each of the many processes that tests start compiles the package anew
# modules are compiled where they are imported first, as most never are: it takes 80 s off the installation
export PIP_COMPILE := 0

.PHONY: install demo docs test check slow kills fuzz mutate results references clean

install: $(VENV)/.installed
demo: $(VENV)/.installed
	$(RUN) demo
docs: $(VENV)/.docs
	$(BIN)/python docs/site/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: build/docs/index.html"
test: $(VENV)/.test
	$(BIN)/pytest $(CONTRACTS:%=--ignore=%)
	$(BIN)/pytest --shapes $(CONTRACTS)
slow: $(VENV)/.test
	$(BIN)/pytest -m slow -n 0
kills: $(VENV)/.test
	$(BIN)/python tests/kills.py --kills 100
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz.py $(N) --seed $(SEED) --jobs $(JOBS)
mutate: $(VENV)/.mutate
	$(BIN)/python tests/mutate.py $(FILES) --jobs $(JOBS)
results: $(VENV)/.test
	$(BIN)/python benchmarks/results.py $(NAME) $(SCANS)
check: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
references: $(REFERENCES)/.installed
	$(REFERENCES)/bin/python -m medseg_attack selftest --against torchattacks,adv_lib,foolbox
clean:
	rm -rf $(VENV) $(REFERENCES)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python 3.11 or newer; run make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch and torchvision are resolved together, in one step, so that they come as a pair
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[report]'
	@touch $@
$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[report,test]'
	@touch $(VENV)/.installed $@
$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
$(VENV)/.mutate: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable '.[test,mutate]'
	@touch $@
$(VENV)/.lint: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[report,test,lint]'
	@touch $(VENV)/.installed $(VENV)/.test $@

# The libraries that attacks are compared with pin packages of 2020: they stand in an environment of their own, which
# looks up what it lacks (torch) in the other. One of their dependencies cannot be built by a newer setuptools.
$(REFERENCES)/.installed: $(VENV)/.installed
	$(BIN)/python -m venv $(REFERENCES)
	echo "import site; site.addsitedir('$$(cd $(VENV)/lib/python*/site-packages && pwd)')" > $(REFERENCES)/beside.pth
	mv $(REFERENCES)/beside.pth $(REFERENCES)/lib/python*/site-packages/
	echo 'setuptools<81' > $(REFERENCES)/constraints.txt
	PIP_CONSTRAINT=$(REFERENCES)/constraints.txt $(REFERENCES)/bin/python -m pip install --quiet '.[references]'
	@touch $@
