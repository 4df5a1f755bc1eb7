#!/usr/bin/env bash
# build.sh SUITE OUT.tar   A Debian as small as debian:SUITE-slim, as a tar, for places where no registry is reached.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=images/base/debian.sh
source "$here/debian.sh"
debian_sources "$1" | debootstrap_with --variant=minbase --include=usr-is-merged "$1" "$2" -
