#!/bin/sh
# Prometheus with its promtool, for the tests of docs/monitoring: Debian's or Ubuntu's package, unless it is there.
set -eu
if command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; then
	exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
	echo "the tests of docs/monitoring need prometheus and promtool; install both (Debian: apt install prometheus)" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# The package starts a server of its own where there is systemd; the tests start theirs.
apt-get install -y --no-install-recommends prometheus >/dev/null 2>&1 ||
	{ apt-get update >/dev/null && apt-get install -y --no-install-recommends prometheus >/dev/null; }
