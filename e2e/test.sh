#!/usr/bin/env bash
# All tests, or a part of them: TEST=fast (no virtual machines), TEST=ci (fast ones and one slow group in rotation),
# TEST=guest (that slow group, without the fast ones).
#
# Slow groups, each a test binary of e2e/tests or a variant of one:
#   demo             make demo, twice, and make demo-down
#   quick-start      the commands of docs/quick-start.md; the chart is upgraded, uninstalled and installed again
#   guest            one guest's whole life, and the accelerator's probe
#   typical          a guest of two nodes as its users see it, and a second guest that it must not reach
#   survival         a guest outlives the absence of its manager, drained hosts and one that dies
#   masters          three control-plane nodes, of which one loses its host and one its volume
#   rotation         a guest of two nodes, and one of three control-plane nodes, get other authorities under requests
#   scaling          workers come and go under a workload, in their zones
#   flannel          a guest of three nodes whose overlay is Flannel's
#   throughput       bytes between two machines of a guest, as a share of those between two pods; a part of make bench
#   upgrade          a guest goes to the next patch and minor version of Kubernetes under a workload; builds both
#   release          a guest of the released version (e2e/release.txt) while the chart is upgraded, rolled back and uninstalled; builds
#                    its images
#   mistakes         Clusters that cannot be made, and such as are deleted half-way
#   aws-node         a node on AWS boots: the image for EC2 by the user data of a stack on ministack; builds that image
#   management       what the lab's cluster offers: network, policies, volumes, ingress, failing hosts
#   images           builds all images a second time, compares, lists what they are made of; but in CI, the controller manager's of
#                    an optimised build, which has a limit; checkov judges the chart, cargo-deny what the product is built on
#   controller       the controller manager against a real API server: every crash point, outages in full length (a part of
#                    it is among the fast tests)
#   mutants          breaks the product on purpose, rule by rule: a test must notice each
#   lab-0 … lab-3    the lab, crashed after every one of its steps: a quarter of them each
#
# PATIENCE=1800 gives emulated guests so many seconds instead of 900 for what they do.
# KEEP_GOING=1 goes on after a step of a guest's life that failed, to see what else does.
#
# The lab's own tests and the demo raise and remove labs, so they run before the one that the others share; they are left
# out, with a word, while somebody else's lab is running. The others use that one, if no guest is on it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

part=${TEST:-all}
target=${CARGO_TARGET_DIR:-target}
started=$SECONDS
lab=$target/debug/lab
groups=(demo quick-start guest typical mistakes management images controller mutants lab-0 lab-1 lab-2 lab-3)
# Not in the rotation: they take longer than CI has beside the fast tests and a cold cache, or were not seen green yet.
long_groups=(aws-node survival masters rotation scaling flannel throughput upgrade release)

step() {
  local began=$SECONDS
  echo "=== $*"
  "$@" || { echo "=== FAILED after $((SECONDS - began)) s: $*"; exit 1; }
  echo "=== ok in $((SECONDS - began)) s: $*"
}
runs() { [[ $part == all || $chosen == "$1" ]]; }
# e2e TEST [FILTER…]: only the tests whose names contain one of the words
e2e() { step cargo test -p giantnetes-e2e --test "$1" -- --nocapture --test-threads=1 "${@:2}"; }

# ask ARGUMENT…: kubectl on the running lab
ask() {
  local kubeconfig
  kubeconfig=$("$lab" kubeconfig 2>/dev/null) || return
  "$(e2e/tools/build.sh --dir kubernetes)/kubectl" --kubeconfig "$kubeconfig" \
    --cache-dir "$(dirname "$kubeconfig")/kubectl-cache" --request-timeout=10s "$@"
}
# Whoever's it is: its API answers. One of its servers, or a host, may be down on purpose.
lab_runs() { [[ $(ask get --raw /readyz 2>/dev/null) == ok ]]; }

chosen=none
if [[ $part == ci ]]; then
  # A commit tells its group by its hash: its number is not known in a shallow clone, and merges would skip groups.
  head=$(git rev-parse --verify HEAD 2>/dev/null || echo 0)
  chosen=${groups[$((16#${head:0:8} % ${#groups[@]}))]}
  echo "=== slow group of this run: $chosen"
fi

fast=true
if [[ " ${groups[*]} ${long_groups[*]} " == *" $part "* ]]; then
  chosen=$part fast=false
elif [[ $part != all && $part != fast && $part != ci ]]; then
  echo "=== TEST=$part is neither all, fast, ci nor a slow group: ${groups[*]} ${long_groups[*]}"
  exit 2
fi

if $fast; then
  step make --no-print-directory check
  step cargo test -p giantnetes-e2e --lib
  step diff <(e2e/mutants.py --table) docs/mutants.md
  step docs/benchmarks/tables.py --check
fi
step make --no-print-directory preflight
# In one go with those that the lab needs, whose sources it shares in part.
if $fast; then step e2e/tools/build.sh --with prometheus prometheus-operator kubeconform; fi
step make --no-print-directory images

# These raise what they need themselves: a stand-in for AWS, an API server, network namespaces.
if $fast; then
  step e2e/aws/templates.py
  for test in deps tools admission chart plan vault node_agent node_flags etcd flannel_etcd guest_api overlay aws; do e2e "$test"; done
fi

tests_lab=false
if $fast || [[ $chosen == lab-* ]]; then tests_lab=true; fi
if ! $tests_lab && ! runs demo; then
  : # Nothing that raises labs is asked for.
elif lab_runs; then
  echo '=== SKIPPED: the tests of the lab itself and the demo, because a lab is running; the others use it'
else
  # What a crash, or a machine that was stopped, left of a lab.
  step "$lab" down
  case $part/$chosen in
    all/*) export LAB_CRASHES=all ;;
    */lab-*) export LAB_CRASHES=${chosen#lab-}/4 ;;
  esac
  if $tests_lab; then e2e lab_vault; e2e lab; fi
  if runs demo; then e2e demo; fi
fi

# Without a lab: a real etcd and API server of its own.
if [[ $part == all || $chosen == controller ]]; then export CONTROLLER=all,long; fi
if $fast || [[ $chosen == controller ]]; then
  # One of its tests runs the example operator.
  step cargo build -p giantnetes --examples
  quick=()
  # A third of its time: what shows in minutes that the core is sound. Outages, leadership, rollouts and the rest have a
  # slow group of their own.
  if $fast && [[ $part != all && $chosen != controller ]]; then
    quick=(access:: apart:: children:: claims:: crash::networks escrow:: exposure:: flannel:: largest:: masters:: namesakes:: pause:: people:: pools:: release:: steady:: strangers:: told::)
  fi
  e2e controller "${quick[@]}"
fi

if [[ $part == all || $chosen == mutants ]]; then step e2e/mutants.py; fi
# Without a lab, too: a Vault, an API server and ministack of its own, and one machine at a time.
if runs aws-node; then
  step images/build.sh ami
  e2e aws_node
fi

# All images once more, from the same tools and binary: what differs must be expected.
compare_images() {
  local second=$GIANTNETES_CACHE/second
  rm -rf "$second"
  mkdir "$second"
  ln -s "$GIANTNETES_CACHE/tools" "$second/tools"
  # The first cache, too, must have what is made of the binary of now.
  images/build.sh && GIANTNETES_CACHE=$second images/build.sh && images/compare.py "$GIANTNETES_CACHE" "$second" || return
  images/sbom.py "$target/sbom" || return
  rm -rf "$second"
}
# What users get of the controller manager is optimised; that it is small enough, its build says. In a cache of its own, or it would push
# out the one that tests use.
build_optimised() {
  local second=$GIANTNETES_CACHE/optimised
  cargo build --release -p giantnetes || return
  mkdir -p "$second"
  ln -sfn "$GIANTNETES_CACHE/tools" "$second/tools"
  GIANTNETES_CACHE=$second GIANTNETES_BIN=$target/release/giantnetes images/build.sh controller || return
  du -b "$(GIANTNETES_CACHE=$second GIANTNETES_BIN=$target/release/giantnetes images/build.sh --path controller)"
  rm -rf "$second"
}
if runs images; then
  step compare_images
  # Half an hour of one CPU, which CI has not.
  if [[ $part != ci ]]; then step build_optimised; fi
  step e2e/checkov.py
  step e2e/deny.sh
fi

raised=false
# Those that run on a lab that is up, in this order.
on_a_lab=(quick-start management mistakes guest typical survival masters rotation scaling flannel throughput upgrade release)
chosen_on_a_lab=()
for group in "${on_a_lab[@]}"; do if runs "$group"; then chosen_on_a_lab+=("$group"); fi; done
if [[ ${#chosen_on_a_lab[@]} -gt 0 ]]; then
  if ! lab_runs; then
    raised=true
    trap '"$lab" down' EXIT
  elif [[ -n $(ask get clusters.giantnetes.io -A -o name 2>/dev/null) ]]; then
    # Its VM, claims and chart would be in the tests' way, and they in its.
    echo '=== a guest runs on this lab: make demo-down first'
    exit 2
  fi
  step make --no-print-directory lab-up
fi
# The versions of Kubernetes before and after, as VM images on every host.
build_versions() {
  local product
  for product in kubernetes-1.36.1 kubernetes-1.37.2; do
    e2e/tools/build.sh "$product" && GIANTNETES_KUBERNETES=$product images/build.sh vm || return
    "$lab" load "$(GIANTNETES_KUBERNETES=$product images/build.sh --path vm)" || return
  done
}
# What was released, as the images of controller manager and VMs, beside those of now.
build_released() {
  local image
  e2e/release.sh || return
  for image in vm controller; do
    GIANTNETES_RELEASE=$(e2e/release.sh --version) GIANTNETES_BIN=$(e2e/release.sh --dir)/giantnetes released "$image" || return
  done
}
# released IMAGE: builds it, and loads it into the lab
released() { images/build.sh "$1" && "$lab" load "$(images/build.sh --path "$1")"; }
for group in "${chosen_on_a_lab[@]}"; do
  case $group in
    guest) e2e accelerator ;;
    upgrade) step build_versions ;;
    release) step build_released ;;
  esac
  e2e "${group/-/_}"
done
if $raised; then
  # Not left to the trap, where its failure would fail nothing.
  trap - EXIT
  step "$lab" down
fi
budget=
if [[ $part == ci ]]; then budget=' (budget: 900 s with warm caches, 3600 s with empty ones)'; fi
echo "=== all ok in $((SECONDS - started)) s$budget"
