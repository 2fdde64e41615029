#!/usr/bin/env bash
# All about GLM-ASR on a GPU in at most 8 minutes: the tests marked `gpu`, then a table of what it costs beside what it would cost at least.
#
#     benchmarks/gpu.sh                   on a machine with CUDA, and Python with torch: nothing else is needed, and nothing is installed
#     benchmarks/gpu.sh pack              before, on a machine with a network: puts what the package needs beside torch into build/gpu, 90 MB, which goes
#                                         with the repository; pip's options of another Python may follow, such as --python-version 3.12
#     benchmarks/gpu.sh --device cpu ...  the same on a CPU, without graphs, on a model of 65 MB: to try it; options of gpu.py may follow
#
# The weights are random, and of the published size: 4.5 GB in TMPDIR while this runs. PYTHON names another Python than python3.
# Exit code: 0, or 1 where a test failed or the table could not be made.
set -uo pipefail
cd "${0%/*}/.." || exit 1

PYTHON=${PYTHON:-python3}
LIMIT=480                               # seconds
PACKAGES="numpy soundfile cffi pycparser safetensors sentencepiece regex tqdm pytest pluggy iniconfig packaging pygments"
NEEDED="numpy soundfile safetensors sentencepiece regex tqdm pytest pygments"

if [ "${1:-}" = pack ]; then
    # shellcheck disable=SC2086         # a list
    exec "$PYTHON" -m pip install --target build/gpu --upgrade --only-binary=:all: --no-deps -c constraints.txt "${@:2}" $PACKAGES
fi

missing() {                             # of NEEDED, what Python does not find
    # shellcheck disable=SC2086
    "$PYTHON" -c 'import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))' torch $NEEDED
}

left=$(missing) || exit 1
if [ -n "$left" ] && [ -d build/gpu ]; then
    export PYTHONPATH=$PWD/build/gpu${PYTHONPATH:+:$PYTHONPATH}
    left=$(missing)
fi
if [ -n "$left" ]; then
    echo "error: $PYTHON has no $left; expected them, or build/gpu of \`benchmarks/gpu.sh pack\` on a machine with a network" >&2
    exit 1
fi

size=()
case " $* " in *" --device cpu "*) size=(--small) && export GLMASR_GPU_TESTS=cpu ;; esac
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT

timed() {                               # timed COMMAND...: says so where it does not end within what is left of LIMIT
    timeout $((LIMIT > SECONDS ? LIMIT - SECONDS : 1)) "$@"
    local code=$?
    [ $code != 124 ] || echo "error: not done after $LIMIT s: $*" >&2
    return $code
}

failed=0
timed "$PYTHON" -m pytest -q -rfEs -p no:cacheprovider -m gpu tests/test_gpu.py tests/test_explain.py || failed=1
echo
timed "$PYTHON" benchmarks/make_checkpoint.py "$folder/model" "${size[@]}" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
timed "$PYTHON" benchmarks/gpu.py "$folder/model" "$@" || failed=1
echo "$SECONDS s in all" >&2
exit $failed
