#!/usr/bin/env bash
# The main job on this machine: from raw text to two continued-pretraining runs, scored and compared.
#   bash launch/quickstart.sh [--out DIR] [--data DIR] [--benchmarks DIR] [--processes N] [--config STUDY]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/runs/quickstart
config=$root/configs/tiny/quickstart.yaml
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out | --config | --data | --benchmarks | --processes)
      if [ $# -lt 2 ]; then echo "error: $1 needs a value" >&2; exit 2; fi
      case "$1" in
        --out) out=$2 ;;
        --config) config=$2 ;;
        *) arguments+=("$1" "$2") ;;
      esac
      shift 2
      ;;
    -h | --help) sed -n '2,3s/^# *//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
  esac
done
. "$root/launch/environment.sh"
make_environment "$root"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m megatron_mathcpt run "$config" --out "$out" "${arguments[@]+"${arguments[@]}"}"
