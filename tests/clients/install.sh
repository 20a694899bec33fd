#!/bin/sh
# install.sh FOLDER makes a virtual environment with the clients that are tested, once, and the npm package if it can.
set -eu
venv=$1
here=$(dirname "$0")

js="$here/js"
js_stamp="$js/node_modules/.ready-$(cat "$js/package.json" "$js/package-lock.json" | cksum | cut -d ' ' -f 1)"
if command -v npm >/dev/null 2>&1 && [ ! -e "$js_stamp" ]; then
	echo "installing the npm package openai ..."
	npm ci --prefix "$js" --ignore-scripts --no-audit --no-fund --loglevel=error
	touch "$js_stamp"
fi

stamp="$venv/.ready-$(cat "$here/requirements.lock" "$0" | cksum | cut -d ' ' -f 1)"
[ -e "$stamp" ] && exit 0

for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
	"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && break
	python=
done
[ -n "$python" ] || { echo "the clients need Python >= 3.10 with venv; found none. PYTHON=/path/to/python3 names one." >&2; exit 1; }

echo "making $venv with the clients (once, a minute or two, 700 MB) ..."
"$python" -m venv --clear "$venv"
echo '*' >"$venv/.gitignore"
"$venv/bin/python" -m pip -qq --disable-pip-version-check install --require-hashes -r "$here/requirements.lock"
touch "$stamp"
