#!/usr/bin/env bash
# All tests, or a part of them: TEST=fast (no virtual machines), TEST=ci (fast ones and one slow group in rotation),
# TEST=guest (that slow group, without the fast ones).
#
# Slow groups, each a test binary of e2e/tests or a variant of one:
#   guest            one guest's whole life, and the accelerator's probe
#   management       what the lab's cluster offers: network, policies, volumes, ingress, failing hosts
#   images           builds all images a second time, and compares
#   controller       the controller manager against a real API server: every crash point, outages in full length
#   mutants          breaks the product on purpose, rule by rule: a test must notice each
#   lab-0 … lab-3    the lab, crashed after every one of its steps: a quarter of them each
# The lab's own tests raise and remove labs, so they run before the one that the others share; they are left out, with a
# word, while somebody else's lab is running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

part=${TEST:-all}
target=${CARGO_TARGET_DIR:-target}
started=$SECONDS
groups=(guest management images controller mutants lab-0 lab-1 lab-2 lab-3)

step() {
  local began=$SECONDS
  echo "=== $*"
  "$@" || { echo "=== FAILED after $((SECONDS - began)) s: $*"; exit 1; }
  echo "=== ok in $((SECONDS - began)) s: $*"
}
chosen=none
if [[ $part == ci ]]; then
  # Each commit takes the next group.
  chosen=${groups[$(($(git rev-list --count HEAD 2>/dev/null || echo 0) % ${#groups[@]}))]}
  echo "=== slow group of this run: $chosen"
fi

fast=true
if [[ " ${groups[*]} " == *" $part "* ]]; then
  chosen=$part fast=false
elif [[ $part != all && $part != fast && $part != ci ]]; then
  echo "=== TEST=$part is neither all, fast, ci nor a slow group: ${groups[*]}"
  exit 2
fi

if $fast; then
  step make --no-print-directory check
  step cargo test -p giantnetes-e2e --lib
  step diff <(e2e/mutants.py --table) docs/mutants.md
fi
step make --no-print-directory images

# These raise what they need themselves: an API server, network namespaces.
if $fast; then
  for test in admission plan node_flags overlay; do step cargo test -p giantnetes-e2e --test "$test" -- --nocapture --test-threads=1; done
fi

if ! $fast && [[ $chosen != lab-* ]]; then
  : # The lab's own tests are not asked for.
elif "$target/debug/lab" status >/dev/null 2>&1; then
  echo '=== SKIPPED: the tests of the lab itself, because a lab is running; the others use it'
else
  # What a crash, or a machine that was stopped, left of a lab.
  step "$target/debug/lab" down
  case $part/$chosen in
    all/*) export LAB_CRASHES=all ;;
    */lab-*) export LAB_CRASHES=${chosen#lab-}/4 ;;
  esac
  step cargo test -p giantnetes-e2e --test lab -- --nocapture --test-threads=1
fi

# Without a lab: a real etcd and API server of its own.
if [[ $part == all || $chosen == controller ]]; then export CONTROLLER=all,long; fi
if $fast || [[ $chosen == controller ]]; then
  step cargo test -p giantnetes-e2e --test controller -- --nocapture --test-threads=1
fi

if [[ $part == all || $chosen == mutants ]]; then step e2e/mutants.py; fi

# All images once more, from the same tools and binary: what differs must be expected.
compare_images() {
  local second=$GIANTNETES_CACHE/second
  rm -rf "$second"
  mkdir "$second"
  ln -s "$GIANTNETES_CACHE/tools" "$second/tools"
  GIANTNETES_CACHE=$second images/build.sh && images/compare.py "$GIANTNETES_CACHE/images" "$second/images" || return
  rm -rf "$second"
}
runs() { [[ $part == all || $chosen == "$1" ]]; }
on_lab() { step cargo test -p giantnetes-e2e --test "$1" -- --nocapture --test-threads=1; }
if runs images; then step compare_images; fi
if runs guest || runs management; then
  "$target/debug/lab" status >/dev/null 2>&1 || trap '"$target/debug/lab" down' EXIT
  step make --no-print-directory lab-up
fi
if runs management; then on_lab management; fi
if runs guest; then
  on_lab accelerator
  on_lab guest
fi
echo "=== all ok in $((SECONDS - started)) s"
