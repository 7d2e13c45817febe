#!/usr/bin/env bash
# Standing mutants: each patch beside this file breaks one promise in a copy of the sources, and the
# tests that it names must turn red. Exit 0 when all mutants are caught; 1 when one is not; 2 when
# the tests are red without a mutant, or a patch does not apply or compile: mend the patch.
#
# The first lines of a patch say what it breaks (`Mutant:`) and who must notice (`Tests:`, parts of
# names). With arguments, only the mutants whose names begin so.
set -euo pipefail
cd "$(dirname "$0")/../.."
tree="$PWD/target/mutants" log="$PWD/target/mutants.log" patches="$PWD/tests/mutants"
export CARGO_TARGET_DIR="$PWD/target" CARGO="${CARGO:-cargo}"

stop() { echo "mutants: $1; see ${log#"$PWD/"}" >&2; exit 2; }
# One selection of packages, as everywhere: another one would compile everything anew.
build() { (cd "$tree" && "$CARGO" test --workspace --lib --locked --no-run) >>"$log" 2>&1; }
# The names of tests stand apart: each is a word.
check() {
    # shellcheck disable=SC2086
    (cd "$tree" && "$CARGO_TARGET_DIR/debug/with-postgres" \
        "$CARGO" test --workspace --lib --locked -- $1) >>"$log" 2>&1
}
field() { sed -n "s/^$1: //p" "$2"; }

: >"$log"
# With their times, so that what has not changed is not compiled again; what a mutant may have been
# in the last time is new.
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
tar --exclude=./target --exclude=./var --exclude=./.git -cf - . | tar -xf - -C "$tree"
sed -n 's/^+++ b\///p' "$patches"/*.patch | sort -u | (cd "$tree" && xargs touch)

chosen=()
for patch in "$patches"/*.patch; do
    name="$(basename "$patch" .patch)"
    if [ $# -eq 0 ]; then chosen+=("$patch"); continue; fi
    for wanted in "$@"; do
        if [[ "$name" == "$wanted"* ]]; then chosen+=("$patch"); break; fi
    done
done
[ ${#chosen[@]} -gt 0 ] || stop "no mutant is named $*"

names=""
for patch in "${chosen[@]}"; do
    [ -n "$(field Tests "$patch")" ] || stop "$(basename "$patch") names no tests"
    patch -p1 -d "$tree" --dry-run --fuzz=1 <"$patch" >>"$log" || stop "$(basename "$patch") does not apply"
    names="$names $(field Tests "$patch")"
done
build || stop "the sources do not compile"
check "$names" || stop "the tests are red without a mutant"

missed=0
printf '%-24s %-8s %s\n' mutant verdict 'what it breaks'
for patch in "${chosen[@]}"; do
    patch -p1 -d "$tree" --fuzz=1 <"$patch" >>"$log"
    build || stop "$(basename "$patch") does not compile"
    verdict=caught
    if check "$(field Tests "$patch")"; then verdict=MISSED missed=1; fi
    printf '%-24s %-8s %s\n' "$(basename "$patch" .patch)" "$verdict" "$(field Mutant "$patch")"
    patch -p1 -R -d "$tree" --fuzz=1 <"$patch" >>"$log"
done
exit "$missed"
