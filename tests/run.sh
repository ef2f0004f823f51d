#!/usr/bin/env bash
# Formatting, lint, types and tests, in the project's own environment.
#   bash tests/run.sh              all but the slow tests
#   bash tests/run.sh --full       the slow tests too
#   bash tests/run.sh -- ARGS      pass ARGS to pytest
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/launch/environment.sh"
export PYTHONDONTWRITEBYTECODE= # else each of a thousand processes would compile what it imports
make_environment "$root"
cd "$root"
marker="not slow and not real_model"
if [ "${1:-}" = "--full" ]; then marker=""; shift; fi
if [ "${1:-}" = "--" ]; then shift; fi
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
ruff format --check .
ruff check .
if [ $# -gt 0 ]; then
  mypy
  exec python -m pytest -m "$marker" "$@"
fi
python -m pytest -n 2 --dist loadfile -m "$marker" --ignore tests/launch
mypy & # next to tests that leave a core idle
types=$!
python -m pytest -m "$marker" tests/launch # one at a time: they share one Slurm
wait $types
