#!/bin/sh
# install.sh FOLDER NAME makes a virtual environment with what NAME.lock has, once.
set -eu
venv=$1
name=$2
lock="$(dirname "$0")/$name.lock"
stamp="$venv/.ready-$(cat "$lock" "$0" | cksum | cut -d ' ' -f 1)"
[ -e "$stamp" ] && exit 0

for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
	"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && break
	python=
done
[ -n "$python" ] || { echo "$name needs Python >= 3.10 with venv; found none. PYTHON=/path/to/python3 names one." >&2; exit 1; }

echo "making $venv with $name (once, a minute or two) ..." >&2
"$python" -m venv --clear "$venv"
echo '*' >"$venv/.gitignore"
"$venv/bin/python" -m pip -qq --disable-pip-version-check install --require-hashes -r "$lock" >&2
touch "$stamp"
