#!/usr/bin/env bash
# Installs the Debian packages that building and testing needs, and only if one is missing: with root rights when that is
# who runs it, else by sudo, saying what. A second run needs neither network nor rights.
set -euo pipefail
packages=(gcc g++ make libc6-dev libcjson-dev libyaml-dev libpcre2-dev libutf8proc-dev libssl-dev python3 python3-venv
    python3-pip clang clang-format unzip ca-certificates)
if ! command -v dpkg-query >/dev/null; then
    echo "not a Debian system: see README.md for what has to be installed (${packages[*]})"
    exit 0
fi
missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "missing packages: ${missing[*]}; install them as root" >&2; exit 1; }
    root=(sudo)
fi
echo "installing ${missing[*]}${root:+ (by sudo)}"
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
