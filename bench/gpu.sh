#!/bin/sh
# Everything there is to do with a GPU at hand: bundles, profile, programs, a table and JSON. See bench/gpu.py.
set -e
cd "$(dirname "$0")/.."
python3 -m bench.gpu "${@:-build/gpu}"
