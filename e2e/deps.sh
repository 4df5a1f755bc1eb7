#!/usr/bin/env bash
# Installs what a Debian 12 machine lacks for the lab, the images and the tests. Rust and Go are not in Debian 12 in the
# versions needed: where the machine has none, they come as their projects publish them, Rust into ~/.cargo by rustup, Go
# into our cache. The Makefile looks for them in both places.
set -euo pipefail

packages=(
  # The lab: container runtime, network tools and an HTTPS client
  containerd runc iproute2 iptables nftables conntrack ipset ethtool socat curl kmod util-linux mount procps
  # Images: building root file systems and container images
  dosfstools fdisk mtools systemd-boot-efi
  mmdebstrap debian-archive-keyring buildah qemu-utils e2fsprogs binutils python3 python3-venv gcc libc6-dev busybox-static
  # The accelerator's probe, which runs on the machine itself
  qemu-system-x86 ovmf
  # The tests
  make git ca-certificates coreutils openssl
)

# The published archives, and what their projects say of their content.
rustup=1.28.2 rustup_sha256=20a06e644b0d9bd2fbdbfd52d42540bdde820ea7df86e92e533c073da0cdd43c
go=1.26.8 go_sha256=d0f743b33e8d8945e6b1f432edd15785c70507121d6e2a723b21285eddf8b57b

die() { echo "deps: $*" >&2; exit 1; }

[[ $(id -u) == 0 ]] || die "the lab and the images need root; run this as root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install_packages() {
  local package missing=()
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  echo "deps: installing ${missing[*]}"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$work/apt.log" 2>&1 || { tail -n 20 "$work/apt.log" >&2; die "apt-get could not install ${missing[*]}"; }
}

# fetch WHAT URL SHA256 FILE
fetch() {
  [[ $(uname -m) == x86_64 ]] || die "$1 is not installed, and this script knows it for x86_64 alone; install it by hand"
  echo "deps: fetching $1 from $2"
  curl -fsSL --retry 3 --max-time 600 -o "$4" "$2" || die "$1 could not be fetched from $2; install it by hand"
  echo "$3  $4" | sha256sum --check --status || die "what $2 serves is not the $1 that this script knows: its SHA-256 differs"
}

install_rust() {
  fetch "rustup $rustup" "https://static.rust-lang.org/rustup/archive/$rustup/x86_64-unknown-linux-gnu/rustup-init" \
    "$rustup_sha256" "$work/rustup-init"
  chmod +x "$work/rustup-init"
  # Cargo itself installs the version of rust-toolchain.toml when it is first called.
  "$work/rustup-init" -y --quiet --no-modify-path --profile minimal --default-toolchain none
}

install_go() {
  local target=${GIANTNETES_CACHE:-$HOME/.cache/giantnetes}/go
  fetch "Go $go" "https://go.dev/dl/go$go.linux-amd64.tar.gz" "$go_sha256" "$work/go.tar.gz"
  tar -xzf "$work/go.tar.gz" -C "$work"
  mkdir -p "$(dirname "$target")"
  rm -rf "$target"
  mv -T "$work/go" "$target"
}

install_packages
command -v cargo >/dev/null || install_rust
command -v go >/dev/null || install_go
