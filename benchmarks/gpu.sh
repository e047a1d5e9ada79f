#!/usr/bin/env bash
# All GPU benchmarks, in under ten minutes on one H200: the losses, an epoch compared with other programs, and ResNet-50
# with 8,142 classes. Given the root of CIFAR-10, also three losses at imbalance factor 100, for 200 epochs.
#     benchmarks/gpu.sh [root of CIFAR-10]
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/losses.py --device cuda --rounds 5
python benchmarks/speed.py --rounds 3
python benchmarks/large.py --rounds 2 --images 300 --device cuda --batch 256 --steps 20
for loss in softmax cb_softmax cb_focal; do
    [ -z "${1:-}" ] || time python -m lt_cb fit --config configs/cifar10_lt.yaml --config "configs/loss/$loss.yaml" \
        --data.root "$1" --trainer.enable_progress_bar false
done
