#!/usr/bin/env bash
# Builds the third-party servers that the lab, the images and the tests run, from Go modules.
#
#   build.sh              build every product that is missing, but for those that are built on demand
#   build.sh etcd helm    build only these
#   build.sh --with etcd  build every product that is missing, and these, which may be built on demand
#   build.sh --dir etcd   print the folder that holds a product's binaries (building nothing)
#
# One folder per product: go.mod and go.sum pin it, product.sh says what to build, and which files of the module (`share`)
# are copied beside the binaries, into share/. Results lie in
# $GIANTNETES_CACHE/tools/PRODUCT/VERSION-HASH, where HASH covers those files and the Go version: whatever is
# there is complete, because a build is renamed into place as its last step.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GIANTNETES_CACHE:-$HOME/.cache/giantnetes}
export GOFLAGS=-mod=readonly
# Sources and intermediate results of Go: more than ten gigabytes that nobody needs when the products are built.
go_cache=$cache/tools/.go

die() { echo "tools: $*" >&2; exit 1; }
known() { for f in "$here"/*/product.sh; do basename "$(dirname "$f")"; done; }
# But for those that only a slow test wants: it asks for them by name.
products() { for product in $(known); do [[ -e $here/$product/on-demand ]] || echo "$product"; done; }

# Sets module, binaries, cgo, ldflags, tags, share and version, hash of a product.
load() {
  local dir=$here/$1
  [[ -f $dir/product.sh ]] || die "there is no product $1; known: $(known | xargs)"
  module='' binaries=() cgo=0 ldflags='' tags='' share=()
  version=
  # shellcheck source=/dev/null
  version_of() { awk -v m="$1" '$1 == m && $2 ~ /^v/ {print $2; exit} $1 == "require" && $2 == m {print $3; exit}' "$dir/go.mod"; }
  source "$dir/product.sh"
  version=${version:-$(version_of "$module")}
  [[ -n $version ]] || die "$1: $dir/go.mod does not require $module"
  hash=$(cat "$dir/go.mod" "$dir/go.sum" "$dir/product.sh" <(go env GOVERSION GOARCH) | sha256sum | cut -c1-12)
}

target() { echo "$cache/tools/$1/$version-$hash"; }

build() {
  local product=$1 out staging started name package log
  load "$product"
  out=$(target "$product")
  if [[ -d $out ]]; then
    echo "tools: $product $version is in the cache"
    return
  fi
  staging=$out.building.$$
  mkdir -p "$staging"
  log=$cache/tools/$product/build.log
  for entry in "${binaries[@]}"; do
    name=${entry%%=*} package=${entry#*=}
    started=$SECONDS
    echo "tools: $product $version: building $name"
    if ! (cd "$here/$product" && CGO_ENABLED=$cgo go build -trimpath -buildvcs=false \
          -tags "$tags" -ldflags "-s -w $ldflags" -o "$staging/$name" "$package") >"$log" 2>&1; then
      tail -n 20 "$log" >&2
      rm -rf "$staging"
      die "$product: building $name ($package $version) failed; the reason is above, the whole of it in $log"
    fi
    echo "tools: $product $version: $name in $((SECONDS - started)) s"
  done
  copy_share "$product" "$staging"
  mv -T "$staging" "$out"
}

# copy_share PRODUCT STAGING: files of the module's source, under their own paths
copy_share() {
  local source file
  [[ ${#share[@]} -gt 0 ]] || return 0
  # Of a product without binaries nothing has fetched the source yet.
  source=$(cd "$here/$1" && go mod download "$module" && go list -m -f '{{.Dir}}' "$module")
  for file in "${share[@]}"; do
    mkdir -p "$2/share/$(dirname "$file")"
    # The module cache is read-only; what is copied need not be.
    cp -r --no-preserve=ownership "$source/$file" "$2/share/$file"
  done
  chmod -R u+w "$2/share"
}

if [[ ${1:-} == --dir ]]; then
  load "${2:?a product}"
  target "$2"
  exit
fi

command -v go >/dev/null || die "go is not installed; Go 1.26 or newer is needed (https://go.dev/doc/install)"
mkdir -p "$cache/tools"
exec 9>"$cache/tools/.lock"
flock 9
case ${1:-} in
  '') mapfile -t wanted < <(products) ;;
  --with) mapfile -t wanted < <(products; printf '%s\n' "${@:2}") ;;
  *) wanted=("$@") ;;
esac
export GOCACHE=$go_cache/build GOMODCACHE=$go_cache/mod
for product in "${wanted[@]}"; do build "$product"; done
if [[ -d $go_cache ]]; then
  # Go keeps its sources read-only.
  chmod -R u+w "$go_cache"
  rm -rf "$go_cache"
fi
