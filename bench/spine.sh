#!/usr/bin/env bash
# Runs spine.py from Bazel's runfiles, where its modules and the programs that it starts lie.
set -euo pipefail
cd "${RUNFILES_DIR:-$0.runfiles}/forkd" 2>/dev/null || true
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/e2e:tests/e2e/stubs:bench exec /usr/bin/python3 bench/spine.py "$@"
