#!/bin/sh
# A virtual environment for each peer, benchmarks/peers/.venv-NAME, from benchmarks/peers/NAME.txt and the versions that
# constraints.txt pins: a peer runs on the same torch and transformers as we do, or the race is about those. What NAME.txt
# names itself is left to it, for a peer that refuses our version.
#
#     sh benchmarks/peers/setup.sh          # all peers
#     sh benchmarks/peers/setup.sh trl      # one of them
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- $(cd "$here" && ls -- *.txt | sed 's/\.txt$//')
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
for name in "$@"; do
    requirements="$here/$name.txt"
    [ -f "$requirements" ] || { echo "$name: no such peer; there are: $(cd "$here" && ls -- *.txt)" >&2; exit 1; }
    own=$(sed -n 's/^\([A-Za-z0-9_.-]*\).*/\1/p' "$requirements" | paste -sd '|')
    grep -v -i -E "^($own)==" "$here/../../constraints.txt" > "$constraints"
    "$python" -m venv "$here/.venv-$name"
    # torch first and alone: an open range fetches gigabytes of CUDA.
    pip="$here/.venv-$name/bin/python -m pip --disable-pip-version-check -q install -c $constraints"
    $pip "$(grep '^torch==' "$requirements")"
    $pip -r "$requirements"
    # The index's torchvision is built for CUDA and does not load beside this torch; no peer needs it for text.
    "$here/.venv-$name/bin/python" -m pip --disable-pip-version-check -q uninstall -y torchvision
    echo "$here/.venv-$name"
done
