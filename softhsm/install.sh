#!/bin/sh
# Installs SoftHSM 2, the software token of demo and CI. Does nothing when it is there.
set -eu

for module in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so \
    /usr/lib64/pkcs11/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so \
    /opt/homebrew/lib/softhsm/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so; do
    if [ -e "$module" ]; then
        exit 0
    fi
done

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if command -v apt-get >/dev/null; then
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq softhsm2
elif command -v dnf >/dev/null; then
    as_root dnf install -y -q softhsm
elif command -v brew >/dev/null; then
    brew install --quiet softhsm
else
    echo "softhsm/install.sh: no apt-get, dnf or brew here." >&2
    echo "Install SoftHSM 2.6 or later by hand (https://www.softhsm.org) so that" >&2
    echo "/usr/local/lib/softhsm/libsofthsm2.so exists, and run again." >&2
    exit 1
fi
