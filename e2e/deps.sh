#!/usr/bin/env bash
# Installs what a Debian 12 machine lacks for the lab, the images and the tests.
# Rust and Go are not in Debian 12 in the versions needed: those two are asked for in clear words.
set -euo pipefail

packages=(
  # The lab: container runtime, network tools and an HTTPS client
  containerd runc iproute2 iptables nftables conntrack ipset ethtool socat curl kmod util-linux mount procps
  # Images: building root file systems and container images
  mmdebstrap debian-archive-keyring buildah qemu-utils e2fsprogs binutils python3 gcc libc6-dev busybox-static
  # The accelerator's probe, which runs on the machine itself
  qemu-system-x86
  # The tests
  make git ca-certificates coreutils openssl
)

die() { echo "deps: $*" >&2; exit 1; }

[[ $(id -u) == 0 ]] || die "the lab and the images need root; run this as root"
command -v cargo >/dev/null || die "cargo is not installed; install Rust by rustup (https://rustup.rs), the version is in rust-toolchain.toml"
command -v go >/dev/null || die "go is not installed; install Go 1.26 or newer (https://go.dev/doc/install)"

missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0
echo "deps: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
  >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "apt-get could not install ${missing[*]}"; }
