#!/usr/bin/env bash
# The main job, as a user does it: install the chart, write one Cluster object, use the guest.
#
#   demo.sh up     may be run again: what is there already is left as it is
#   demo.sh down   removes the guest and the controller manager
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/e2e/tools/build.sh
target=${CARGO_TARGET_DIR:-$root/target}
namespace=demo cluster=demo
# Emulated guests on two cores take a minute or two; this is where something is wrong.
deadline=600

export PATH KUBECONFIG KUBECACHEDIR
PATH=$("$tools" --dir kubernetes):$("$tools" --dir helm):$target/debug:$PATH
# Without a lab there is nothing to remove.
if [[ ${1:-} == down ]] && ! lab kubeconfig >/dev/null 2>&1; then exit 0; fi
KUBECONFIG=$(lab kubeconfig)
# What kubectl and helm remember of APIs goes with the lab, not into the user's home.
KUBECACHEDIR=$(dirname "$KUBECONFIG")/kubectl-cache

say() { echo "demo: $*"; }
die() { echo "demo: $*" >&2; exit 1; }

# Prints the Cluster's phase and message whenever they change, until it is Ready.
follow() {
  local last='' now phase started=$SECONDS
  while :; do
    now=$(kubectl -n $namespace get cluster.giantnetes.io $cluster \
      -o jsonpath='{.status.phase}{"\t"}{.status.message}' 2>/dev/null || true)
    phase=${now%%$'\t'*}
    if [[ $now != "$last" ]]; then
      say "$((SECONDS - started)) s: ${phase:-not seen yet}  ${now#*$'\t'}"
      last=$now
    fi
    [[ $phase == Ready ]] && return
    ((SECONDS - started < deadline)) || die "not Ready after $deadline s; kubectl -n $namespace describe gcl $cluster"
    sleep 1
  done
}

up() {
  local started=$SECONDS
  say 'installing the chart'
  local image
  image=$("$root/images/build.sh" --ref controller)
  # A probe of KVM on each of the hosts would take its CPUs from the one emulated guest.
  helm upgrade --install giantnetes "$root/charts/giantnetes" --namespace giantnetes-system --create-namespace \
    --set image.repository="${image%:*}" --set image.tag="${image##*:}" \
    --set kvm.devicePlugin.enabled=false --wait --timeout 2m >/dev/null
  kubectl create namespace $namespace --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  say "one Cluster object: $(tr -s '\n' ' ' <"$root/manifests/examples/minimal.yaml" | sed 's/^#[^:]*\. //')"
  kubectl -n $namespace apply -f "$root/manifests/examples/minimal.yaml" >/dev/null
  follow
  kubectl -n $namespace get clusters.giantnetes.io -o wide

  guest=$(mktemp)
  trap 'rm -f "$guest"' EXIT
  giantnetes kubeconfig $cluster -n $namespace >"$guest"
  say 'the guest cluster:'
  kubectl --kubeconfig "$guest" get nodes -o wide
  kubectl --kubeconfig "$guest" apply -f "$root/e2e/hello.yaml" >/dev/null
  kubectl --kubeconfig "$guest" wait --for=condition=Ready pod/hello --timeout=180s >/dev/null ||
    die "the pod in the guest does not run: $(kubectl --kubeconfig "$guest" describe pod hello | tail -n 8)"
  kubectl --kubeconfig "$guest" get pod hello -o wide
  say "kubectl exec hello -- uname -a: $(kubectl --kubeconfig "$guest" exec hello -- uname -a)"
  say "done in $((SECONDS - started)) s"
  cat <<NEXT
Next:
  export KUBECONFIG=$KUBECONFIG                # the management cluster
  $target/debug/giantnetes kubeconfig $cluster -n $namespace >guest.kubeconfig   # the guest
NEXT
}

# What cannot be removed in order goes with the lab, which is removed next.
down() {
  kubectl version --request-timeout=10s >/dev/null 2>&1 || return 0
  if kubectl get crd clusters.giantnetes.io >/dev/null 2>&1; then
    say 'deleting the Cluster'
    kubectl -n $namespace delete clusters.giantnetes.io --all --timeout=180s || say 'the Cluster is left to the lab'
  fi
  helm uninstall giantnetes --namespace giantnetes-system --ignore-not-found >/dev/null ||
    say 'the controller manager is left to the lab'
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *) die 'usage: demo.sh up|down' ;;
esac
