#!/usr/bin/env bash
# Checks the GPU path on one H100 or H200 in one call, without a network; its limits add up to 575 seconds.
#   bash tests/gpu_check.sh [ARCHIVE]       every phase but 6 and 8
#   PHASES="3 7" ROWS="bf16 fp8_current" bash tests/gpu_check.sh    some phases, and some rows of the speed phase
#   PHASES="0 6 8" bash tests/gpu_check.sh  a whole 1B model, and a small study with lm-eval: 10 minutes more
# ARCHIVE (tar.xz of a folder site/) and PYTHONPATH bring what the machine's Python lacks, such as Transformer
# Engine; without them the environment of launch/gpu.sh is used as it is. Results go to $OUT (default
# runs/gpu_check): table.txt, figures.jsonl, JSON files, log.txt. A package that is missing ends the check at
# once; a phase that fails or exceeds its time limit never stops the rest.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 2
OUT=${OUT:-$root/runs/gpu_check}
mkdir -p "$OUT"
PHASES=${PHASES:-0 1 2 3 4 5 7}
python=${PYTHON:-python3}
work=$(mktemp -d)
export MATHCPT_FIGURES=$OUT/figures.jsonl PYTHONUNBUFFERED=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export CUDA_DEVICE_MAX_CONNECTIONS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export NVTE_FWD_LAYERNORM_SM_MARGIN=0 NVTE_BWD_LAYERNORM_SM_MARGIN=0 # margins are for overlapped communication
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True NCCL_GRAPH_REGISTER=0 # graphs need 0 with such segments
: >"$OUT/log.txt"
: >"$MATHCPT_FIGURES"

# phase NUMBER SECONDS NAME COMMAND...: one row of the table; its output goes to the log
phase() {
  local number=$1 seconds=$2 name=$3 begin status
  shift 3
  case " $PHASES " in *" $number "*) ;; *) return ;; esac
  if [ -n "${NO_GPU:-}" ] && [[ " 1 2 4 6 8 " == *" $number "* ]]; then
    printf '%s\t%s\tno GPU\t0\t\n' "$number" "$name" >"$work/$number.$name.row"
    return
  fi
  begin=$(date +%s)
  timeout -k 5 "$seconds" "$@" >"$work/$number.$name.log" 2>&1
  status=$?
  case $status in 0) status=ok ;; 124 | 137) status="out of time" ;; *) status="failed ($status)" ;; esac
  printf '%s\t%s\t%s\t%s\t%s\n' "$number" "$name" "$status" "$(($(date +%s) - begin))" \
    "$(grep -v '^[[:space:]]*$' "$work/$number.$name.log" | tail -n 1 | cut -c1-150)" >"$work/$number.$name.row"
}

unpack() {
  if [ -n "${1:-}" ]; then
    tar -xJf "$1" -C "$work" || return 1
    rm -rf "$work"/site/transformer_engine/jax # importing it costs every process seconds
  fi
  nvidia-smi || true
  PYTHONPATH=$PYTHONPATH "$python" - <<'PYTHON'
import importlib.metadata, sys
names = ["torch", "transformer-engine", "megatron-core", "transformers", "triton", "nvidia-cudnn-cu13", "nvidia-cublas"]
found = {}
for name in names:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = "-"
print("python", sys.version.split()[0], *(f"{name} {version}" for name, version in found.items()))
PYTHON
}
export -f unpack
export work python OUT
if [ -n "${1:-}" ]; then export PYTHONPATH=$work/site:$PYTHONPATH; fi
phase 0 30 versions bash -c 'unpack "$@"' unpack "${1:-}"

imports=$work/imports.py
cat >"$imports" <<'PYTHON'
import sys
import torch
sys.path.insert(0, "tests/benchmarks")
try:
    import tests.train.conftest, eval_generation, gpu_training, saves
except ModuleNotFoundError as error:
    sys.exit(f"no package {error.name}: add it to PYTHONPATH, or use the environment of launch/gpu.sh")
import transformer_engine.pytorch as te
from transformer_engine.pytorch.fp8 import FP8GlobalStateManager
from megatron_mathcpt.model.language_model import has_transformer_engine
assert torch.cuda.is_available(), "no GPU: torch sees no CUDA device"
assert has_transformer_engine()
print(torch.cuda.get_device_name(), "FP8", FP8GlobalStateManager.is_fp8_available())
PYTHON
PHASES="$PHASES 0" phase 0 60 import "$python" "$imports"
if grep '^no package' "$work/0.import.log"; then
  rm -rf "$work"
  exit 2
fi
grep -q '	ok	' "$work/0.import.row" || export NO_TE=1
if grep -q 'no GPU' "$work/0.import.log"; then export NO_GPU=1; fi
if [ -n "${NO_TE:-}" ] && [ -n "${1:-}" ]; then # continue without Transformer Engine, with Megatron-Core's local layers
  rm -rf "$work"/site/transformer_engine*
fi

# The tests are small and measure no times, so they share the GPU.
test_of() { "$python" -m pytest -q -p no:cacheprovider -rfE --timeout 150 "$@"; }
export -f test_of
phase 1 100 products bash -c 'test_of tests/gpu/test_products.py' &
phase 2 120 parity bash -c 'test_of tests/gpu/test_parity.py' &
phase 4 140 training_tests bash -c 'test_of -v -n 14 tests/train/test_gpu.py' &
wait

# 12 layers of Llama-3-8B in FP8 take 73.9 of 79.2 GiB; bf16 moments would not fit (the update makes fp32 copies).
rows=${ROWS:-bf16 fp8_current fp8_blockwise fp8_delayed bf16,documents}
if [ -n "${NO_TE:-}" ]; then rows="bf16 bf16,documents"; fi
# shellcheck disable=SC2086 # the rows are words
phase 3 185 speed "$python" tests/benchmarks/gpu_training.py --row-seconds 45 --no-ceilings --profile --rows $rows \
  --steps "${STEPS:-6}" --out "$OUT/training.json"
phase 7 50 generation "$python" tests/benchmarks/eval_generation.py --out "$OUT/generation.json"
rows="bf16,unfused fp8_delayed,unfused" # deterministic, as the fused loss is not
if [ -n "${NO_TE:-}" ]; then rows="bf16"; fi
# shellcheck disable=SC2086
phase 5 110 saves "$python" tests/benchmarks/saves.py --rows $rows --out "$OUT/saves.json"
phase 6 100 whole_1b "$python" tests/benchmarks/gpu_training.py --row-seconds 40 --no-ceilings --shape llama3.2-1b \
  --layers 16 --rows bf16 fp8_current fp8_blockwise --out "$OUT/whole_1b.json"
study() { # its folder of 2 GB is not a result: the page and the last losses are
  "$python" -m megatron_mathcpt run tests/gpu/study.yaml --out "$work/study" --processes 4 || return 1
  cp "$work/study/report/index.html" "$OUT/study.html"
  tail -qn 1 "$work"/study/base*/metrics.jsonl
}
export -f study
phase 8 480 study bash -c study

sort -s -k1,1n "$work"/*.row | awk -F '\t' '{printf "%-2s %-15s %-13s %4s s  %s\n", $1, $2, $3, $4, $5}' | tee "$OUT/table.txt"
for log in "$work"/*.log; do
  printf '\n=== %s\n' "$(basename "$log" .log)"
  cat "$log"
done >"$OUT/log.txt"
for row in "$work"/*.row; do
  log=${row%.row}.log
  if ! grep -q -E '	(ok|no GPU)	' "$row"; then
    printf '\n=== %s\n' "$(basename "$log" .log)"
    grep -v -i -E 'warn|^ *$' "$log" | tail -n 20 | cut -c1-170
  fi
done
rm -rf "$work"
! grep -q -E 'failed|out of time' "$OUT/table.txt"
