#!/usr/bin/env bash
# Runs a Python test under Bazel: `python_test.sh FILE [FOLDER…]`, paths from the repository's root, FOLDERs searched for modules. Bazel's own
# py_test needs a program called `python`, which Debian does not have.
set -euo pipefail
test=$1
shift
path=scripts/lib
for folder in "$@"; do
  path+=":$folder"
done
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$path" exec /usr/bin/python3 "$test"
