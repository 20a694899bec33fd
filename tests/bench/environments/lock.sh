#!/bin/sh
# Makes the lock files anew. Needs uv.
set -eu
cd "$(dirname "$0")"
for name in litellm picture; do
	"${UV:-uv}" pip compile --quiet --universal --generate-hashes --no-strip-extras --no-annotate --no-header \
		--python-version 3.10 "$name.in" -o "$name.lock"
done
