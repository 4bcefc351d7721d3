PYTHON = .venv/bin/python

.PHONY: test quality benchmark

.venv:
	python3 -m venv .venv
	.venv/bin/pip install -e '.[test,quality]'

test: .venv
	$(PYTHON) -m pytest

quality: .venv
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

benchmark: .venv
	$(PYTHON) examples/benchmarks/benchmark.py
	$(PYTHON) examples/benchmarks/benchmark_operator.py
	$(PYTHON) examples/benchmarks/benchmark_segmentation.py
	$(PYTHON) examples/benchmarks/benchmark_evaluation.py
	$(PYTHON) examples/benchmarks/benchmark_batches.py
