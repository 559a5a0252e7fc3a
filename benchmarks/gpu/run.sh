#!/bin/sh
# Checks and measurements on a machine with an NVIDIA GPU, in stages of a few minutes each:
#   benchmarks/gpu/run.sh smoke correctness sanitizer ceilings models
# Results go to $OUT (default benchmarks/gpu/results) as JSON, and as tables to the terminal.
# Nothing is downloaded.
set -u
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OUT="${OUT:-$PWD/benchmarks/gpu/results}"
mkdir -p "$OUT"
status=0
for stage in "$@"; do
  echo "== $stage"
  case "$stage" in
    smoke | correctness | ceilings | models)
      timeout 540 python3 benchmarks/gpu/stages.py "$stage" || status=1 ;;
    sanitizer)
      for tool in memcheck racecheck synccheck; do
        timeout 170 compute-sanitizer --tool "$tool" --error-exitcode 9 \
          python3 benchmarks/gpu/stages.py sanitizer || status=1
      done ;;
    *) echo "unknown stage $stage: smoke correctness sanitizer ceilings models"; status=1 ;;
  esac
done
exit $status
