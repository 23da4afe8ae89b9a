#!/usr/bin/env bash
# Everything that only a GPU shows, in at most 8 minutes: the tests marked `gpu`, attacks against the network's own
# passes, a 3-D network through windows, training. Nothing is installed or downloaded: medattack must be importable.
#
#     benchmarks/gpu/run.sh OUT [DATA]
#
# OUT gets tests.txt, gpu.json and gpu.md. DATA is a prepared data set of 2-D slices; without it a phantom is made.
# PYTHON names the interpreter (python3), PROCESSES how many test processes share the GPU (8), LIMIT the seconds (470).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

start=$SECONDS
timeout 200 "$python" -m pytest -m gpu -n "${PROCESSES:-8}" -q -W default -p no:cacheprovider tests/test_cuda.py >"$out/tests.txt" 2>&1 || true
tail -n 1 "$out/tests.txt"
data=${2:-}
if [ -z "$data" ]; then
  data=$out/phantom
  "$python" -m medseg_attack prepare "$out/scans" --format 'phantom(patients=24)' --out "$data" >/dev/null
fi
"$python" benchmarks/gpu/measure.py --data "$data" --out "$out" --seconds "$((${LIMIT:-470} - SECONDS + start))"
rm -rf "$out/scans" "$out/phantom"
