#!/bin/sh
# Chromium and its driver, for the tests of the pages: Debian's or Ubuntu's packages, unless they are there already.
set -eu
if command -v chromedriver >/dev/null 2>&1 && { command -v chromium || command -v google-chrome; } >/dev/null 2>&1; then
	exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
	echo "the tests of the pages need chromium and chromedriver; install both (Debian: apt install chromium chromium-driver)" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
packages="chromium chromium-driver fonts-dejavu-core"
# shellcheck disable=SC2086 # a list of words
apt-get install -y --no-install-recommends $packages >/dev/null 2>&1 ||
	{ apt-get update >/dev/null && apt-get install -y --no-install-recommends $packages >/dev/null; }
