#!/usr/bin/env bash
# Fill the time of one GPU with trainings, most important first. The same command continues.
#
#     benchmarks/gpu.sh SECONDS [grid file]
#
# 1. Unpacks data/cifar10.tar.xz and data/cifar100.tar.xz, or their parts by `split`, if the folders are missing.
#    benchmarks/pack.py makes these archives for a machine without a network.
# 2. Trains benchmarks/gpu.yaml, AT_ONCE (10) at a time. Rows of finished trainings are in results/FOLDER every minute,
#    FOLDER being the name of the grid file.
# 3. If time is left, measures losses, epochs beside other programs, and ResNet-50 with 8,142 classes.
#
# It ends after SECONDS, and a few more to stop the trainings. It needs no package of the extra `report`.
set -uo pipefail
cd "$(dirname "$0")/.."
end=$((SECONDS + ${1:?give the seconds}))
grid=${2:-benchmarks/gpu.yaml}
name=$(basename "$grid" .yaml)
devices=$(printf ',%.0s0' $(seq "${AT_ONCE:-10}"))

keep_rows() {
    python3 -c "import sys
from pathlib import Path
from lt_cb.errors import InputError
from lt_cb.lab.report.rows import save
try:
    print('%d rows added, %d in all' % save(Path('runs', sys.argv[1]), Path('results', sys.argv[1])))
except InputError as error:
    print(error)" "$name"
}
within_time() { # a grid that gets one signal stops its trainings; without --foreground it gets two
    [ $SECONDS -ge $end ] || timeout --foreground $((end - SECONDS)) "$@"
}

for data in cifar10 cifar100; do
    [ -d data/$data ] || ! ls data/$data.tar.xz* >/dev/null 2>&1 || cat data/$data.tar.xz* | tar xJ -C data
done
python3 -m lt_cb grid "$grid" --dry-run >/dev/null || exit 2
[ ! -e /dev/nvidia0 ] || nvidia-cuda-mps-control -d # several small trainings share a GPU faster
while sleep 60; do keep_rows; done >/dev/null 2>&1 &
saver=$!
within_time python3 -m lt_cb grid "$grid" --devices "${devices:1}"
kill $saver && wait $saver 2>/dev/null
keep_rows
[ -e /dev/nvidia0 ] || exit 0
mkdir -p "results/$name"
for command in "losses.py --device cuda --rounds 5" "speed.py --rounds 3" \
    "large.py --rounds 2 --images 300 --device cuda --batch 256 --steps 20"; do
    # shellcheck disable=SC2086
    within_time python3 benchmarks/$command >"results/$name/${command%% *}.md"
done
echo quit | nvidia-cuda-mps-control
