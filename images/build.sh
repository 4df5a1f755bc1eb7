#!/usr/bin/env bash
# Builds Giantnetes' images where no registry is reached, from the Dockerfiles beside it.
#
#   build.sh              build every image that is missing
#   build.sh vm node      build only these (and what they are made of)
#   build.sh --path vm    print the archive of an image, or the folder of the node disk (building nothing)
#   build.sh --ref vm     print the reference that the archive carries
#
# Results lie in $GIANTNETES_CACHE/images/NAME/HASH, where HASH covers everything that goes into them: whatever is there
# is complete, because a build is renamed into place as its last step.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GIANTNETES_CACHE:-$HOME/.cache/giantnetes}
tools=$here/../e2e/tools/build.sh
# The Kubernetes that node disk and VM image carry: a product of e2e/tools.
kubernetes=${GIANTNETES_KUBERNETES:-kubernetes}
binary=${GIANTNETES_BIN:-${CARGO_TARGET_DIR:-$here/../target}/debug/giantnetes}
# The version that the binary was released as, if it was: its images are called by it, and lie beside those of now.
release=${GIANTNETES_RELEASE:+-$GIANTNETES_RELEASE}
# To be raised when this script itself changes what it makes.
recipe=3
# Bytes that the controller image may have: a host that takes over has to get it first. A debug build, which the tests use, is
# larger than what users get.
controller_limit=60000000
[[ $binary != */debug/giantnetes && -z $release ]] || controller_limit=75000000
names=(base base-vm pause toolbox nettools calico coredns traefik etcd node vm controller)
# Built when they are named.
on_demand=(ami)
# Images that a guest's node has from the start: the sandbox, the add-ons, and a toolbox for whoever looks for a fault.
preloaded=(pause toolbox calico coredns traefik)

die() { echo "images: $*" >&2; exit 1; }

# What a change of must lead to a new result, on standard output.
inputs() {
  local name=$1
  # Both Debian roots are made by the scripts of one folder.
  (cd "$here" && find "${name/%base-vm/base}" -type f ! -name README.md | LC_ALL=C sort | xargs sha256sum)
  case $name in
    base | base-vm) echo "recipe $recipe" ;;
    pause | toolbox | nettools) hash_of base ;;
    calico) hash_of base; tool_names calico cni ;;
    coredns | traefik | etcd) echo "recipe $recipe"; tool_names "$name" ;;
    node)
      sha256sum < "$here/base/debian.sh"
      for image in "${preloaded[@]}"; do hash_of "$image"; done
      tool_names "$kubernetes" etcd cni calico ;;
    vm) hash_of base-vm; hash_of node; tool_names flannel; binary_hash ;;
    ami) echo "recipe $recipe"; hash_of node; binary_hash ;;
    controller) hash_of base; binary_hash ;;
    *) die "there is no image $name; known: ${names[*]} ${on_demand[*]}" ;;
  esac
}
hash_of() { inputs "$1" | sha256sum | cut -c1-12; }
tool_names() { for product in "$@"; do basename "$("$tools" --dir "$product")"; done; }
tool_version() { tool_names "$1" | sed 's/-[0-9a-f]*$//'; }
binary_hash() { if [[ -f $binary ]]; then sha256sum < "$binary"; else echo none; fi; }
kubernetes_version() { tool_version "$kubernetes"; }

# folder NAME: where its results lie. Another Kubernetes' have a folder of their own, or they would push each other out.
folder() {
  case $1 in
    node | ami) echo "$cache/images/$1${kubernetes#kubernetes}" ;;
    vm) echo "$cache/images/$1${kubernetes#kubernetes}$release" ;;
    controller) echo "$cache/images/$1$release" ;;
    *) echo "$cache/images/$1" ;;
  esac
}
result() { echo "$(folder "$1")/$(hash_of "$1")"; }
path() { if [[ $1 == node || $1 == ami ]]; then result "$1"; else echo "$(result "$1")/$1.tar"; fi; }
ref() {
  case $1 in
    base) echo debian:bookworm-slim ;;
    base-vm) echo debian:trixie-slim ;;
    pause | toolbox | nettools) echo "giantnetes/$1:1" ;;
    calico | coredns | traefik | etcd) echo "giantnetes/$1:$(tool_version "$1")" ;;
    vm) echo "giantnetes/vm:$(kubernetes_version)$release" ;;
    # Its content: a changed one must be rolled out.
    controller) echo "giantnetes/controller:$(hash_of controller)" ;;
    *) die "$1 has no reference" ;;
  esac
}

needs() {
  case $1 in
    pause | toolbox | nettools | calico | coredns | traefik | etcd | controller) echo base ;;
    node) echo "${preloaded[@]}" ;;
    vm) echo base-vm node ;;
    ami) echo node ;;
  esac
}

# Builds an image and, before it, what it is made of; does nothing where the result exists.
ensure() {
  local name=$1 need out staging started log
  out=$(result "$name")
  [[ -d $out ]] && { echo "images: $name is in the cache"; return; }
  for need in $(needs "$name"); do [[ -d $(result "$need") ]] || ensure "$need"; done
  started=$SECONDS
  mkdir -p "$(folder "$name")"
  rm -rf --one-file-system "$(folder "$name")"/*.building
  staging=$out.building
  mkdir "$staging"
  log=$(folder "$name")/build.log
  # In a shell of its own, so that `set -e` holds inside although its failure is asked for here.
  if ! bash -c 'set -euo pipefail; source "$1"; "build_$2" "$3"' - "${BASH_SOURCE[0]}" "$name" "$staging" > "$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -rf "$staging"
    die "$name: the build failed; the reason is above, the whole of it in $log"
  fi
  mv -T "$staging" "$out"
  touch "$out"
  forget "$name"
  echo "images: $name in $((SECONDS - started)) s, $(du -sh "$out" | cut -f1)"
}

# A node disk stays until a second newer one is there: a running VM image build or lab may still read it.
forget() {
  local keep=1 old
  [[ $1 == node ]] && keep=2
  find "$(folder "$1")" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %p\n' | sort -rn | tail -n +$((keep + 1)) | cut -d' ' -f2- |
    while read -r old; do rm -rf "$old"; done
}

# buildah with its whole state in the cache, and without a daemon, a registry or a container of its own.
b() { buildah --root "$cache/images/.buildah" --runroot "$cache/images/.buildah-run" --storage-driver "${GIANTNETES_STORAGE_DRIVER:-overlay}" "$@"; }

# dockerfile NAME CONTEXT STAGING [ARGUMENT…]: an image from its Dockerfile into STAGING/NAME.tar
dockerfile() {
  local name=$1 context=$2 staging=$3
  shift 3
  load_base "$(base_of "$name")"
  # No time of building in it, or every build would be another image.
  b bud --layers --timestamp 0 --isolation chroot --network host --pull-never "$@" --iidfile "$staging/id" -t "$(ref "$name")" \
    -f "$here/$name/Dockerfile" "$context"
  save "$(cat "$staging/id")" "$name" "$staging"
  # What a rebuild left without a name.
  b rmi --prune > /dev/null 2>&1 || true
}

# save ID NAME STAGING: by id, since by name the archive would carry buildah's own localhost/ name as well.
save() { b push "${1#sha256:}" "docker-archive:$3/$2.tar:$(ref "$2")"; }

# The Debian that an image stands on.
base_of() { if [[ $1 == vm ]]; then echo base-vm; else echo base; fi; }

# load_base BASE: what a Dockerfile's FROM names must be in buildah's store, and be ours of now.
load_base() {
  local id
  id=$(cat "$(result "$1")/id")
  if [[ $(b images -q --no-trunc "$(ref "$1")" 2> /dev/null) != *"$id" ]]; then
    b pull "docker-archive:$(path "$1")"
  fi
}

build_base() { debian_root base bookworm "$1"; }
build_base-vm() { debian_root base-vm trixie "$1"; }
# debian_root NAME SUITE STAGING
debian_root() {
  local container
  "$here/base/build.sh" "$2" "$3/root.tar"
  container=$(b from scratch)
  b add "$container" "$3/root.tar" /
  b config --cmd bash "$container"
  b commit --rm --timestamp 0 --iidfile "$3/id" "$container" "$(ref "$1")"
  save "$(cat "$3/id")" "$1" "$3"
  rm "$3/root.tar"
}
build_pause() { dockerfile pause "$here/pause" "$1"; }
build_toolbox() { dockerfile toolbox "$here/toolbox" "$1"; }

build_nettools() { dockerfile nettools "$here/nettools" "$1"; }

# put_tool PRODUCT STAGING FOLDER: a product's binaries, linked into the context
put_tool() {
  local source
  source=$("$tools" --dir "$1")
  [[ -d $source ]] || { echo "$source is missing: run e2e/tools/build.sh $1 first"; return 1; }
  mkdir -p "$2/context/$3"
  find "$source" -maxdepth 1 -type f -exec cp -l {} "$2/context/$3/" \;
}
build_calico() {
  put_tool calico "$1" bin
  put_tool cni "$1" cni
  cp -rl "$("$tools" --dir calico)/share" "$1/context/share"
  dockerfile calico "$1/context" "$1"
  rm -rf "$1/context"
}
build_coredns() { build_tool coredns "$1"; }
build_traefik() { build_tool traefik "$1"; }
build_etcd() { build_tool etcd "$1"; }
build_tool() {
  put_tool "$1" "$2" bin
  dockerfile "$1" "$2/context" "$2"
  rm -rf "$2/context"
}

build_node() {
  KUBERNETES=$("$tools" --dir "$kubernetes") ETCD=$("$tools" --dir etcd) CNI=$("$tools" --dir cni)
  CALICO=$("$tools" --dir calico) KUBERNETES_VERSION=$(kubernetes_version)
  CALICO_VERSION=$(tool_version calico) COREDNS_VERSION=$(tool_version coredns)
  TRAEFIK_VERSION=$(tool_version traefik)
  PRELOAD=$(for image in "${preloaded[@]}"; do path "$image"; done | xargs)
  for folder in "$KUBERNETES" "$ETCD" "$CNI" "$CALICO"; do
    [[ -d $folder ]] || { echo "$folder is missing: run e2e/tools/build.sh first"; return 1; }
  done
  export KUBERNETES ETCD CNI CALICO KUBERNETES_VERSION CALICO_VERSION COREDNS_VERSION TRAEFIK_VERSION PRELOAD
  "$here/node/build.sh" "$1"
}

# The binary without its debug information, which is most of a debug build.
put_binary() {
  [[ -f $binary ]] || { echo "$binary is missing: build it, or name it by GIANTNETES_BIN"; return 1; }
  install -m 755 "$binary" "$1/giantnetes"
  strip "$1/giantnetes" 2> /dev/null || true
  touch -d @0 "$1/giantnetes"
}
build_ami() {
  mkdir "$1/binary"
  put_binary "$1/binary"
  NODE=$(result node) BINARY=$1/binary/giantnetes "$here/ami/build.sh" "$1"
  rm -rf "$1/binary"
}
build_vm() {
  put_tool flannel "$1" bin
  put_binary "$1/context"
  # Linked, not copied: the disk is large, and nothing writes to it.
  cp -rl "$(result node)" "$1/context/node"
  dockerfile vm "$1/context" "$1" --build-arg "KUBERNETES_VERSION=$(kubernetes_version)"
  rm -rf "$1/context"
}
build_controller() {
  local size
  mkdir "$1/context"
  put_binary "$1/context"
  dockerfile controller "$1/context" "$1"
  rm -rf "$1/context"
  size=$(stat -c %s "$1/controller.tar")
  ((size <= controller_limit)) || { echo "the image has $size bytes, more than $controller_limit"; return 1; }
}

main() {
  local name
  case ${1:-} in
    --path) path "${2:?an image}"; return ;;
    --ref) ref "${2:?an image}"; return ;;
    -*) die "there is no option $1" ;;
  esac
  for name in buildah mmdebstrap containerd ctr qemu-img mkfs.ext4 modprobe strip; do
    command -v "$name" > /dev/null || die "$name is not installed; images/README.md lists the packages that are needed"
  done
  [[ $EUID -eq 0 ]] || die "making a Debian root needs root"
  mkdir -p "$cache/images"
  exec 9> "$cache/images/.lock"
  flock 9
  if [[ $# -eq 0 ]]; then set -- "${names[@]}"; fi
  for name in "$@"; do inputs "$name" > /dev/null; ensure "$name"; done
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
