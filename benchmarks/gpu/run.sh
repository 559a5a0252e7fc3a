#!/bin/sh
# Checks and measurements on a machine with an NVIDIA GPU:
#   benchmarks/gpu/run.sh [--seconds=N] [--dry | --compile] STAGE[:GLOB]...
# Stages: smoke correctness sanitizer ceilings kernels gemm attention conv models. "STAGE:GLOB" runs
# the cases that match: gemm:'*bf16*'. A stage ends after N seconds (510); cases that were not
# reached say so. Each writes $OUT/STAGE.json (default benchmarks/gpu/results) after every row, and
# a table to the terminal. $MODELS may name a folder of ONNX files for the stage models. Nothing is
# downloaded.
# Without a GPU: --dry runs every case from end to end at small sizes, on a device made of NumPy and
# the CPU (STAGE_dry.json, no times); --compile compiles kernels, gemm, attention, conv and models.
set -u
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OUT="${OUT:-$PWD/benchmarks/gpu/results}"
export TINYCOMP_CACHE_DIR="${TINYCOMP_CACHE_DIR:-/tmp/tinycomp-gpu-cache}"
mkdir -p "$OUT"
python="${PYTHON:-python3}"
options=""
sanitize=yes
status=0
for argument in "$@"; do
  case "$argument" in
    --dry) sanitize=""; options="$options $argument"; continue ;;
    --*) options="$options $argument"; continue ;;
  esac
  stage="${argument%%:*}"
  only="*"
  [ "$stage" = "$argument" ] || only="${argument#*:}"
  echo "== $stage $only"
  if [ "$stage" = sanitizer ] && [ -n "$sanitize" ]; then
    for tool in memcheck racecheck synccheck; do
      echo "-- $tool"
      compute-sanitizer --target-processes all --tool "$tool" --error-exitcode 9 \
        "$python" benchmarks/gpu/stages.py sanitizer --only "$only" --seconds 170 || status=1
      mv "$OUT/sanitizer.json" "$OUT/sanitizer_$tool.json"
    done
  else
    # shellcheck disable=SC2086
    "$python" benchmarks/gpu/stages.py "$stage" --only "$only" $options || status=1
  fi
done
exit $status
