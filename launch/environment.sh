#!/usr/bin/env bash
# Creates the Python environment of launch/constraints.txt in .venv, once; the other scripts source it.
#   bash launch/environment.sh && . .venv/bin/activate
# launch/gpu.sh adds what only GPUs need.
# Needs Python 3.11 or 3.12 and pip's usual package index. MATHCPT_VENV sets a folder other than .venv.
# On Linux pip's default torch includes CUDA; to get the smaller CPU build, point pip at the PyTorch CPU
# wheels through pip's own settings (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS).
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or 3.12: not found; install one or set PYTHON=/path/to/python3.11" >&2
  return 2
}

pip_install() { # VENV PIP-ARGUMENTS: installs the versions in launch/constraints.txt
  local venv=$1
  shift
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$(dirname "${BASH_SOURCE[0]}")/constraints.txt" "$@"
}

make_environment() {
  local root venv wanted python
  root=$1
  venv=${MATHCPT_VENV:-$root/.venv}
  wanted=$(cat "$root/setup.py" "$root/launch/constraints.txt" | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$venv/.mathcpt" 2>/dev/null)" != "$wanted" ]; then
    python=$(find_python) || return 2
    echo "Creating the environment in $venv (once, a few minutes) ..." >&2
    "$python" -m venv "$venv" || return 2
    pip_install "$venv" setuptools wheel || return 2
    pip_install "$venv" --no-build-isolation \
      -e "${root}[train,eval,synthesis,tables,fast,language,dev]" || return 2
    echo "$wanted" >"$venv/.mathcpt"
  fi
  export PATH="$venv/bin:$PATH"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  if [ $# -gt 0 ]; then sed -n '2,8s/^# *//p' "$0"; exit 2; fi
  root=$(cd "$(dirname "$0")/.." && pwd)
  make_environment "$root"
  echo "The environment is complete. To use it: . ${MATHCPT_VENV:-$root/.venv}/bin/activate"
fi
