#!/bin/bash
# Does ganscope work on this machine's GPU, and how fast? Under ten minutes, without a network.
#
#   benchmarks/gpu_check.sh [--device cpu]
#
# Installs what is missing from the wheels in the folder $WHEELS, if it is named; runs the tests
# marked gpu, then benchmarks/gpu_check.py, which leaves gpu_check.json and gpu_check.md in $OUT
# (none: a temporary folder). $PYTHON says which Python. --device cpu: a dry run of all that, small.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-$(mktemp -d)}
device=cuda
if [ "${1:-}" = --device ]; then device=$2; fi
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --no-index --find-links "$WHEELS" -e '.[test]'
fi
if [ "$device" = cuda ]; then
  "$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU here"'
fi
"$python" -m pytest -n 0 -q -m gpu tests/test_gpu.py || [ $? = 5 ]
# From elsewhere: datasets/ here would hide Hugging Face's library of that name.
here=$PWD
cd "$out"
timeout 360 "$python" "$here/benchmarks/gpu_check.py" --device "$device" --out "$out"
