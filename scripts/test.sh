#!/usr/bin/env bash
# Make .venv with the test extra; run ruff, mypy --strict, the import contract, the claims check and pytest.
# ./scripts/test.sh PYTEST_ARGS runs a part:  ./scripts/test.sh tests/secagg -x
# ./scripts/test.sh -m slow                   runs the slow tests (utility floors, big models, long fuzzing, all crashes, Ray, flwr run, a browser; about twenty minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment "[test]"
export OMP_NUM_THREADS=1
if [ "$#" -gt 0 ]; then
  exec .venv/bin/python -m pytest "$@"
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python scripts/check_claims.py
exec .venv/bin/python -m pytest -n 2
