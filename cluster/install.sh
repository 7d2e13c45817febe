#!/bin/sh
# Installs PostgreSQL's server programs for the tests. Does nothing when they are there; starts nothing.
set -eu

for programs in $(echo "$PATH" | tr ':' ' ') /usr/lib/postgresql/*/bin; do
    if [ -x "$programs/initdb" ] && [ -x "$programs/postgres" ]; then
        exit 0
    fi
done

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if command -v apt-get >/dev/null; then
    echo "make test: installing PostgreSQL (its server programs; none is started)"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # Debian would make and start a cluster of its own.
    as_root mkdir -p /etc/postgresql-common
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        echo "create_main_cluster = false" |
            as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql
elif command -v dnf >/dev/null; then
    as_root dnf install -y -q postgresql-server
elif command -v brew >/dev/null; then
    brew install --quiet postgresql@15
else
    echo "cluster/install.sh: no apt-get, dnf or brew here." >&2
    echo "Install PostgreSQL 15 or later by hand so that initdb is on the path, and run again." >&2
    exit 1
fi
