#!/usr/bin/env bash
# The tests under several instruction sets of the processor, which round differently: those of torch's own kernels
# (ATEN_CPU_CAPABILITY) and of oneDNN's (ONEDNN_MAX_CPU_ISA), from the narrowest to all that the processor has.
#
#     scripts/test/instruction_sets.sh [ARGS]    ARGS go to pytest, for example tests/golden; default: the whole suite
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

status=0
for limits in "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41" "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" ""; do
    echo "== ${limits:-all instruction sets of this processor}"
    # shellcheck disable=SC2086  # two variables, or none
    env $limits ./setup.sh test "$@" || status=1
done
exit $status
