#!/bin/bash
# Does ganscope work on this machine's GPU, and how fast does it fine-tune there?
#
#   benchmarks/gpu_check.sh [PACK [WEIGHTS]]
#
# Runs the tests that need a GPU, then a minute of benchmarks/train_clip.py, which prints views a
# second. PACK: a pack of views (none: noise); WEIGHTS: what --pretrained takes (none: random).
# PYTHON says which Python; OUT where the results go (none: a temporary folder).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-$(mktemp -d)}
pack=${1:-$out/toy}
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU here"'
"$python" -m pytest -n 0 -q -m gpu tests/test_gpu.py
if [ $# -eq 0 ]; then
  "$python" benchmarks/train_clip.py toy --out "$pack" --number 2000 --size 224
fi
rm -rf "$out/minute"
"$python" benchmarks/train_clip.py train --pack "$pack" --out "$out/minute" \
  --folds 0 --seeds 1 --final-seconds 60 --within 0 --device cuda ${2:+--pretrained "$2"}
