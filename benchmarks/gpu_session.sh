#!/usr/bin/env bash
# Everything that a machine with one GPU is asked, in about ten minutes, what matters most first.
#
#     OUT=folder benchmarks/gpu_session.sh
#
# Needs torch, NumPy, safetensors and pytest; a folder `.whl` beside the repository's files may hold
# wheels of moshi, einops and sphn, which are unpacked for this run alone. TESTS_S and BENCH_S bound
# the seconds of both halves; PRESET and DEVICE may be small, to try it without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu-out}
PYTHON=${PYTHON:-python3}
PRESET=${PRESET:-7b}
DEVICE=${DEVICE:-cuda}
BENCH_S=${BENCH_S:-400}
TESTS_S=${TESTS_S:-100}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    for wheel in .whl/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$site"; done
    export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
else
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
{ nvidia-smi || true; "$PYTHON" -c 'import sys, torch; print(sys.version, torch.__version__)'; } \
    >"$OUT/machine.txt" 2>&1

# A kernel that is wrong or a wait that is too many is known before it is timed.
timeout "$TESTS_S" "$PYTHON" -m pytest tests/gpu --confcutdir=tests/gpu -m gpu -q -rA \
    -p no:cacheprovider -W default --tb=short 2>&1 | tee "$OUT/tests.txt" | tail -n 40

# A section in a process of its own: one that crashes or hangs costs the others nothing.
began=$SECONDS
run() {
    local left=$((BENCH_S - (SECONDS - began)))
    ((left > 20)) || { echo "no time for $1" | tee -a "$OUT/bench.err"; return; }
    local most=$2
    ((most < left)) || most=$left
    timeout $((most + 20)) "$PYTHON" benchmarks/bench_gpu.py --sections "$1" --preset "$PRESET" \
        --device "$DEVICE" --budget-s "$most" "${@:3}" 2>>"$OUT/bench.err" | tee -a "$OUT/bench.jsonl"
}
run one 150 ${BENCH_WORDS:-}
run sessions 150 ${BENCH_WORDS:-}
run launches 40 ${BENCH_WORDS:-}
run edge 20 ${BENCH_WORDS:-}
run load 100 ${BENCH_WORDS:-}
grep -c bench "$OUT/bench.jsonl"
