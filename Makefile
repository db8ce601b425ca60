# `make demo` and `make test` are each the single command on a bare machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock

# Images of containers often set this; then every process, the emulated one too, compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# Environments of their own for programs that we test against, outside the tree: LiberTEM alone takes 1.3 GB.
PEERS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mpxct

.PHONY: demo gui test test-kernel check lock clean peers test-peers
demo: .venv/.installed
	$(BIN)/mpxct demo --out demo

# The desktop window; with nothing attached it offers the simulated instrument.
gui: .venv/.installed-gui
	$(BIN)/mpxct gui

# Whole files side by side, for tests of a file share what is dear.
test: .venv/.installed-test
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow and not hardware and not kernel"

# A real kernel in QEMU, which it gets from apt where it lacks and may.
test-kernel: .venv/.installed-test
	$(BIN)/pytest -m kernel tests/test_kernel.py

check: .venv/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

peers: $(PEERS)/libertem/.installed $(PEERS)/nexus/.installed $(PEERS)/reconstruction/.installed $(PEERS)/ome-zarr/.installed

test-peers: .venv/.installed-test peers
	MPXCT_LIBERTEM_PYTHON=$(PEERS)/libertem/bin/python MPXCT_NEXUS_PYTHON=$(PEERS)/nexus/bin/python \
	  MPXCT_RECON_PEERS_PYTHON=$(PEERS)/reconstruction/bin/python MPXCT_OME_ZARR_PYTHON=$(PEERS)/ome-zarr/bin/python \
	  $(BIN)/pytest -n 2 --dist loadfile -m slow tests/test_libertem.py tests/test_nexus_peers.py tests/test_recon_peers.py \
	  tests/test_export_peers.py

$(PEERS)/libertem/.installed: | .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python "$(PYTHON)" $(PEERS)/libertem
	$(BIN)/uv pip install --quiet --python $(PEERS)/libertem/bin/python libertem-live==0.3.0
	@touch $@

$(PEERS)/nexus/.installed: | .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python "$(PYTHON)" $(PEERS)/nexus
	$(BIN)/uv pip install --quiet --python $(PEERS)/nexus/bin/python nxtomo==3.1.1 tomoscan==2.5.1 punx==0.3.5 hdf5plugin
	@touch $@

$(PEERS)/reconstruction/.installed: | .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python "$(PYTHON)" $(PEERS)/reconstruction
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(PEERS)/reconstruction/bin/python \
	  itk-rtk==2.7.0.post1 astra-toolbox==2.5.0 scikit-image==0.26.0 odl==1.0.0
	@touch $@

$(PEERS)/ome-zarr/.installed: | .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python "$(PYTHON)" $(PEERS)/ome-zarr
	$(BIN)/uv pip install --quiet --python $(PEERS)/ome-zarr/bin/python ome-zarr==0.18.0
	@touch $@

# The versions that everybody gets; the GPU extras stay out, for they exclude each other.
lock: .venv/bin/uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --upgrade --python-version 3.11 --extra gui \
	  --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv demo

.venv/.installed: pyproject.toml requirements.lock .venv/bin/uv
	$(UV) --editable .
	@touch $@

.venv/.installed-gui: .venv/.installed
	$(UV) --editable '.[gui,export]'
	@sh .ci/desktop
	@touch $@

.venv/.installed-test: .venv/.installed-gui
	$(UV) --group test
	@touch $@

.venv/.installed-lint: .venv/.installed-test
	$(UV) --group lint
	@touch $@

.venv/bin/uv:
	@PYTHON="$(PYTHON)" sh .ci/venv
