#!/bin/sh
# Everything there is to do with a GPU at hand: profile, programs, peers, a table, JSON and a database. See bench/gpu.py.
set -e
cd "$(dirname "$0")/.."
python3 -m bench.gpu "${@:-build/gpu}"
