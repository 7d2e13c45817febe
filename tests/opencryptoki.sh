#!/bin/bash
# Runs the tests of group opencryptoki over opencryptoki's soft token: installs it where it is
# missing, starts its daemon where it does not run, initialises a token of its own. A token with
# another label is not touched. The programs in target/debug are those that are tested.
set -euo pipefail
cd "$(dirname "$0")/.."

LABEL=tollgate-test
# Of a token that holds test keys only.
SO_PIN=87654321 # what opencryptoki gives every new token
USER_PIN=12345678

say() { echo "make test-opencryptoki: $*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

find_module() {
    ls /usr/lib/*/opencryptoki/libopencryptoki.so.0 /usr/lib64/opencryptoki/libopencryptoki.so.0 \
        /usr/lib/opencryptoki/libopencryptoki.so.0 2>/dev/null | head -n 1 || true
}

if [ -z "$(find_module)" ] || ! command -v pkcsconf >/dev/null; then
    command -v apt-get >/dev/null || { say "no apt-get: install opencryptoki by hand"; exit 1; }
    say "installing opencryptoki"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq opencryptoki
fi
MODULE=$(find_module)
[ -n "$MODULE" ] || { say "opencryptoki is installed without libopencryptoki.so.0"; exit 1; }
if [ "$(id -u)" != 0 ] && ! id -nG | grep -qw pkcs11; then
    say "you are not in group pkcs11, which may use the token: usermod -aG pkcs11 $(id -un)"
    exit 1
fi

DAEMON= # its process id, when it is ours
WORK=$(mktemp -d)
cleanup() {
    rm -rf "$WORK"
    [ -n "$DAEMON" ] || return 0
    # It ends within some seconds, and may need to be told again.
    for _ in $(seq 40); do
        as_root kill "$DAEMON" 2>/dev/null || return 0
        sleep 0.5
    done
    say "pkcsslotd ($DAEMON) has not ended yet"
}
trap cleanup EXIT

if ! pgrep -x pkcsslotd >/dev/null; then
    say "starting pkcsslotd"
    as_root pkcsslotd
    for _ in $(seq 50); do
        DAEMON=$(pgrep -x pkcsslotd || true)
        if [ -n "$DAEMON" ] && pkcsconf -t >/dev/null 2>&1; then break; fi
        sleep 0.1
    done
    [ -n "$DAEMON" ] || { say "pkcsslotd does not start"; exit 1; }
fi

# `pkcsconf -t` has a block for each token, "Token #3 Info:" and its fields below.
field() {
    pkcsconf -t -c "$SLOT" | sed -n "s/^[[:space:]]*$1: //p" | sed 's/[[:space:]]*$//'
}
pkcsconf -t >/dev/null || { say "pkcsconf finds no daemon; is one just ending? try again"; exit 1; }
SLOT=$(pkcsconf -t | awk '/^Token #/ { sub("#", "", $2); slot = $2 }
    /Model: IBM SoftTok/ { print slot; exit }')
[ -n "$SLOT" ] || { say "opencryptoki has no soft token; see opencryptoki.conf"; exit 1; }

case "$(field Flags)" in
    *TOKEN_INITIALIZED*)
        if [ "$(field Label)" != "$LABEL" ]; then
            say "slot $SLOT holds the token \"$(field Label)\", which is not for tests: not touched"
            exit 1
        fi
        ;;
    *)
        say "initialising the soft token in slot $SLOT as $LABEL"
        # The label is asked for on standard input.
        echo "$LABEL" | pkcsconf -I -c "$SLOT" -S "$SO_PIN" >/dev/null
        pkcsconf -u -c "$SLOT" -S "$SO_PIN" -n "$USER_PIN" >/dev/null
        ;;
esac
if [[ "$(field Flags)" == *USER_PIN_LOCKED* ]]; then
    say "the user of $LABEL is locked; unlock: pkcsconf -u -c $SLOT"
    exit 1
fi

(umask 077 && echo "$USER_PIN" >"$WORK/pin")
export TOLLGATE_TEST_MODULE=$MODULE TOLLGATE_TEST_PIN_FILE=$WORK/pin
say "$MODULE, slot $SLOT, token $LABEL"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked --run-ignored only -E 'test(opencryptoki)' -j1
else
    cargo test --workspace --locked --tests -- --ignored --test-threads=1 opencryptoki
fi
say "passed"
