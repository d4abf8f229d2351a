# Everything runs in .venv, which the first command makes by itself (see requirements/setup.sh).
# `make test ARGS="-m 'not slow'"` hands arguments to pytest.
# On a machine without a graphics card, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# before the first command saves a download of several GB.

.PHONY: demo test lint setup clean

# Another environment's settings must not leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
# Torch's threads wait asleep: spinning is many times slower on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
bin := $(CURDIR)/.venv/bin

demo: setup
	$(bin)/python -m napari_sam2.demo $(ARGS)

# Two processes, of which each has its own screen and one thread for the model.
test: setup
	OMP_NUM_THREADS=1 $(bin)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

lint: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

setup:
	@bash requirements/setup.sh

clean:
	rm -rf .venv build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
