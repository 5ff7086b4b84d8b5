# Every target makes .venv by itself; a second call finds it in a fraction of a second.
# Extra arguments: make demo ARGS="--smoke", make test ARGS="-k rib", make bench ONLY="rib metrics", make ui RUN=runs/demo

PY   := .venv/bin/python
ARGS ?=
RUN  ?= runs/demo
ONLY ?= $(filter-out shapes_trial pipeline_pictures fsl_gradients,$(basename $(notdir $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))))

.PHONY: env demo test test-all check bench ui lock clean

env: .venv/.ready

.venv/.ready: pyproject.toml requirements.lock
	@command -v uv >/dev/null 2>&1 || python3 -c "import uv" 2>/dev/null || python3 -m pip install --quiet uv || python3 -m pip install --quiet --user --break-system-packages uv
	@set -e; UV=$$(command -v uv || echo "python3 -m uv"); export UV_HTTP_TIMEOUT=300 UV_LINK_MODE=hardlink; \
	  test -x $(PY) || $$UV venv --quiet --python ">=3.11,<3.14" .venv; \
	  $$UV pip sync --quiet --python $(PY) --compile-bytecode requirements.lock; \
	  $$UV pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

demo: env
	$(PY) experiments/shapes_rib.py --out runs/demo $(ARGS)

test: env
	$(PY) -m pytest $(ARGS)

test-all: env
	$(PY) -m pytest -m "slow or not slow" $(ARGS)

check: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest tests/test_architecture.py

bench: env
	@set -e; mkdir -p runs/bench; for name in $(ONLY); do echo "== $$name"; $(PY) benchmarks/$$name.py --json runs/bench/$$name.json; done

ui: env
	@test -f $(RUN)/mlflow.db || { echo "no $(RUN)/mlflow.db: run 'make demo' first, or name a run's folder with RUN=..."; exit 2; }
	$(PY) -m seedbed ui --run $(RUN) $(ARGS)

lock:
	uv pip compile pyproject.toml --extra full --extra dev --universal --python-version 3.11 --no-emit-index-url --no-header --output-file requirements.lock --upgrade

clean:
	rm -rf .venv runs
