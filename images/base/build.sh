#!/usr/bin/env bash
# build.sh OUT.tar   A Debian 12 as small as debian:bookworm-slim, as a tar, for places where no registry is reached.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=images/base/debian.sh
source "$here/debian.sh"
debian_sources | debootstrap_with --variant=minbase --include=usr-is-merged bookworm "$1" -
