#!/bin/sh
# A virtual environment for each peer, benchmarks/peers/.venv-NAME, from benchmarks/peers/NAME.txt and the versions that
# constraints.txt pins: a peer runs on the same torch and transformers as we do, or the race is about those.
#
#     sh benchmarks/peers/setup.sh          # all peers
#     sh benchmarks/peers/setup.sh trl      # one of them
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- $(cd "$here" && ls -- *.txt | sed 's/\.txt$//')
for name in "$@"; do
    requirements="$here/$name.txt"
    [ -f "$requirements" ] || { echo "$name: no such peer; there are: $(cd "$here" && ls -- *.txt)" >&2; exit 1; }
    "$python" -m venv "$here/.venv-$name"
    # torch first and alone: an open range fetches gigabytes of CUDA.
    pip="$here/.venv-$name/bin/python -m pip --disable-pip-version-check -q install -c $here/../../constraints.txt"
    $pip "$(grep '^torch==' "$requirements")"
    $pip -r "$requirements"
    echo "$here/.venv-$name"
done
