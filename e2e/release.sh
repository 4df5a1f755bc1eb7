#!/usr/bin/env bash
# Builds the released controller manager (e2e/release.txt names version and commit), which upgrades are tried from.
#
#   release.sh             build it, if it is missing
#   release.sh --version   print its version
#   release.sh --dir       print the folder with the binary `giantnetes` and its `source` (building nothing)
#
# It lies in $GIANTNETES_CACHE/release/COMMIT: what is there is complete, because a build is renamed into place as its last step.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GIANTNETES_CACHE:-$HOME/.cache/giantnetes}
read -r version commit < <(grep -v '^#' "$here/release.txt")
out=$cache/release/$commit

die() { echo "release: $*" >&2; exit 1; }
has_it() { git -C "$here" cat-file -e "$commit^{commit}" 2>/dev/null; }

# A clone without the whole history lacks it, and an export of the tree has none at all.
reach() {
  has_it && return
  echo "release: commit $commit of $version is not in this clone; asking for it" >&2
  timeout 120 git -C "$here" fetch --quiet --depth=1 origin "$commit" >&2 && has_it && return
  die "commit $commit of release $version is not in this clone (shallow: $(git -C "$here" rev-parse --is-shallow-repository 2>&1 | tail -n 1)), and cannot be fetched.
    Clone with the whole history (git fetch --unshallow), or put what a clone with it has built into $out"
}

build() {
  local started=$SECONDS staging=$out.building
  reach
  rm -rf --one-file-system "$cache"/release/*.building
  mkdir -p "$staging/source"
  git -C "$here/.." archive "$commit" | tar -x -C "$staging/source"
  grep -qx "version = \"$version\"" "$staging/source/Cargo.toml" || die "commit $commit is not version $version"
  # Its crates have another version than those of now, and cargo tells them apart by that: they may share what others wrote.
  (cd "$staging/source" && CARGO_TARGET_DIR=$staging/target cargo build --quiet --locked -p giantnetes --bin giantnetes)
  # Copied: cargo links it to what it keeps.
  cp "$staging/target/debug/giantnetes" "$staging/giantnetes"
  rm -rf "$staging/target"
  mv -T "$staging" "$out"
  # Earlier ones are asked for no more.
  find "$cache/release" -mindepth 1 -maxdepth 1 -type d ! -name "$commit" -exec rm -rf {} +
  echo "release: $version in $((SECONDS - started)) s"
}

case ${1:-} in
  '')
    mkdir -p "$cache/release"
    exec 9>"$cache/release/.lock"
    flock 9
    if [[ -d $out ]]; then echo "release: $version is in the cache"; else build; fi ;;
  --version) echo "$version" ;;
  --dir) echo "$out" ;;
  *) die "there is no option $1" ;;
esac
