#!/usr/bin/env bash
# cargo-deny judges what we build on, by deny.toml: licences, sources, and crates that are not to come in. The database of
# advisories lies in none of the registries that a build needs; where it can be reached, `cargo deny check advisories` asks it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
tool=${GIANTNETES_CACHE:-$HOME/.cache/giantnetes}/tools/cargo-deny/$version
if [[ ! -x $tool/bin/cargo-deny ]]; then
  echo "deny: building cargo-deny $version"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # It runs for seconds: optimising it would take longer.
  env -u CARGO_BUILD_BUILD_DIR CARGO_TARGET_DIR="$work/target" CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install cargo-deny --quiet --locked --version "$version" --root "$work/root"
  mkdir -p "$(dirname "$tool")"
  mv -T "$work/root" "$tool"
fi
"$tool/bin/cargo-deny" --locked --workspace check --hide-inclusion-graph licenses bans sources
