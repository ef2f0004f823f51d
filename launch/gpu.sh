#!/usr/bin/env bash
# The GPU environment: that of the tests, with Transformer Engine built against its torch, and a check of both.
#   bash launch/gpu.sh
# Needs a C++ compiler and about 9 GB of disk, but no GPU and no CUDA toolkit: torch's own packages include CUDA 13.
# Training then needs a driver for CUDA 13 (R580 or newer). MATHCPT_VENV and PYTHON as in environment.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -gt 0 ]; then sed -n '2,5s/^# *//p' "${BASH_SOURCE[0]}"; exit 2; fi
. "$root/launch/environment.sh"
make_environment "$root"
venv=${MATHCPT_VENV:-$root/.venv}

read -r torch cuda < <(python -c 'import torch; print(torch.__version__, torch.version.cuda)')
case "$cuda" in
  13.*) ;;
  *)
    echo "error: $venv has torch $torch for CUDA $cuda, not 13; point pip at wheels for CUDA 13 and remove $venv" >&2
    exit 2
    ;;
esac

# Transformer Engine looks for CUDA's headers and libraries here, both at build time and at run time: a system
# toolkit may have another version.
CUDA_HOME=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
export CUDA_HOME
built="torch $torch $(grep '^transformer-engine-torch' "$root/launch/constraints.txt")"
if [ "$(cat "$venv/.mathcpt_gpu" 2>/dev/null)" != "$built" ]; then
  echo "Building Transformer Engine against torch (once; minutes to an hour, depending on the cores) ..." >&2
  python -m pip uninstall --quiet --yes transformer-engine-torch # pip would keep one built for another torch
  pip_install "$venv" "cuda-toolkit[cccl,nvcc]" ninja pybind11
  # Its torch half is a source package that must be compiled for this torch: not in pip's isolated build with the
  # newest torch, not downloaded as a binary, and not taken from pip's cache for an earlier torch.
  CPATH=$CUDA_HOME/../cudnn/include:$CUDA_HOME/../nccl/include NVTE_PYTORCH_FORCE_BUILD=TRUE \
    pip_install "$venv" --no-build-isolation --no-cache-dir -e "${root}[gpu]"
  echo "$built" >"$venv/.mathcpt_gpu"
fi
python "$root/launch/prove_gpu.py"
echo "To train with it, set in the cluster file: python: $venv/bin/python, environment: CUDA_HOME: $CUDA_HOME"
