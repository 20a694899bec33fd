#!/bin/sh
# Makes requirements.lock anew, and js/package-lock.json where npm is there. Needs uv.
set -eu
cd "$(dirname "$0")"
"${UV:-uv}" pip compile --quiet --universal --generate-hashes --no-strip-extras --no-annotate --no-header \
	--python-version 3.10 requirements.in -o requirements.lock
if command -v npm >/dev/null 2>&1; then npm install --prefix js --package-lock-only --ignore-scripts --no-audit --no-fund; fi
