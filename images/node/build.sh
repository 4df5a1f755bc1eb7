#!/usr/bin/env bash
# build.sh OUT   Makes the disk that every guest node boots from: OUT/{disk.qcow2,vmlinuz,vmlinux,initrd.img,packages.txt,
# kubernetes-version}, and the add-ons that fit it: OUT/addons.yaml. Needs root (it makes a Debian root and runs
# containerd), and from the environment the folders KUBERNETES, ETCD, CNI and CALICO with binaries, KUBERNETES_VERSION,
# CALICO_VERSION, COREDNS_VERSION and TRAEFIK_VERSION, and PRELOAD, the archives of images to have at first boot.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=images/base/debian.sh
source "$here/../base/debian.sh"
out=$1
root=$out/rootfs
disk_size=4G
# One fixed moment and fixed ids: two builds of the same inputs differ in nothing that is cheap to keep equal.
export SOURCE_DATE_EPOCH=1735689600
disk_uuid=6b6f6e67-6e65-7465-7300-000000000001

started=$SECONDS
step() { echo "node: $* ($((SECONDS - started)) s)"; }

main() {
  : "${KUBERNETES:?}" "${ETCD:?}" "${CNI:?}" "${CALICO:?}" "${KUBERNETES_VERSION:?}" "${CALICO_VERSION:?}" \
    "${COREDNS_VERSION:?}" "${TRAEFIK_VERSION:?}" "${PRELOAD:?}"
  mkdir -p "$out"
  step "add-ons"; make_addons
  step "Debian"; make_root
  step "kernel and initramfs"; take_kernel; make_initramfs
  step "Kubernetes"; add_kubernetes
  step "services"; set_services
  step "images"; preload
  step "clean"; clean
  step "disk"; make_disk
  echo "$KUBERNETES_VERSION" > "$out/kubernetes-version"
  rm -rf "$root"
  step "done"
}

# Upstream's manifests with our patches. kustomize reads nothing from outside of the folder that it is given.
make_addons() {
  local folder=$out/addons
  cp -r "$here/addons" "$folder"
  cp -r "$CALICO/share" "$folder/upstream"
  sed -i "s/CALICO_VERSION/$CALICO_VERSION/; s/COREDNS_VERSION/$COREDNS_VERSION/; s/TRAEFIK_VERSION/$TRAEFIK_VERSION/" "$folder/kustomization.yaml"
  "$KUBERNETES/kubectl" kustomize "$folder" > "$out/addons.yaml"
  rm -rf "$folder"
}

make_root() {
  local packages options=() path
  packages=$(sed 's/#.*//' "$here/packages" | xargs | tr ' ' ,)
  while read -r path; do
    case $path in
      '' | \#*) ;;
      *.ko) options+=(--dpkgopt="path-exclude=/lib/modules/*/kernel/$path") ;;
      *) options+=(--dpkgopt="path-exclude=/lib/modules/*/kernel/$path/*") ;;
    esac
  done < "$here/modules.exclude"
  debian_sources bookworm | debootstrap_with --variant=minbase --include="usr-is-merged,$packages" "${options[@]}" bookworm "$root" -
  chroot "$root" dpkg-query -W > "$out/packages.txt"
  cp -rT --no-preserve=ownership "$here/rootfs" "$root"
}

kernel_version() { basename "$root"/lib/modules/*; }

# The kernel is given to QEMU beside the disk. vmlinux is the same kernel without its compression: booted by PVH it
# starts seconds earlier where the CPU is emulated, but at a fixed address, so where a real CPU runs it vmlinuz is right.
take_kernel() {
  depmod -b "$root" "$(kernel_version)"
  cp "$root/boot/vmlinuz-$(kernel_version)" "$out/vmlinuz"
  python3 "$here/vmlinux.py" "$out/vmlinuz" "$out/vmlinux"
}

make_initramfs() {
  local tree=$root/tmp/initramfs module path
  mkdir -p "$tree"/{bin,dev,proc,sys,root,lib}
  cp "$root/bin/busybox" "$tree/bin/busybox"
  for module in sh mount umount cat echo grep insmod usleep findfs switch_root poweroff; do ln -s busybox "$tree/bin/$module"; done
  sed 's/#.*//' "$here/initramfs/modules" | xargs -n1 |
    while read -r module; do modprobe -d "$root" -S "$(kernel_version)" --show-depends "$module"; done |
    awk '$1 == "insmod" && !seen[$2]++ {print $2}' |
    while read -r path; do
      cp "$path" "$tree/lib/"
      echo "/lib/$(basename "$path")"
    done > "$tree/modules"
  install -m 755 "$here/initramfs/init" "$tree/init"
  find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  # Not compressed: unpacking would take longer than reading it does.
  chroot "$root" sh -c 'cd /tmp/initramfs && find . | LC_ALL=C sort | cpio --quiet --reproducible -R 0:0 -o -H newc' > "$out/initrd.img"
  rm -rf "$tree"
}

add_kubernetes() {
  local name
  for name in kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
    install -m 755 "$KUBERNETES/$name" "$root/usr/local/bin/$name"
  done
  install -m 755 "$ETCD"/etcd "$ETCD"/etcdctl "$ETCD"/etcdutl "$root/usr/local/bin/"
  install -d "$root/opt/cni/bin" "$root/etc/cni/net.d" "$root/etc/kubernetes" "$root/var/lib/kubelet"
  install -m 755 "$CNI"/* "$CALICO/calico" "$root/opt/cni/bin/"
  ln -s calico "$root/opt/cni/bin/calico-ipam"
}

# What runs is said by the user data, so nothing of Debian's starts but what a machine needs.
set_services() {
  local unit name etc=$root/etc/systemd
  rm -rf "$etc"/system/*.wants "$etc"/system/*.requires
  # Time must not be waited for: the unit is ordered before everything else, and that cannot be taken back by a drop-in.
  # An emulated CPU's clock is its host's. Where no time server answers, each question for one costs QEMU's user-mode network
  # a socket for four minutes; with 200 of them QEMU's main loop took a third of all CPU.
  sed -e 's/^\(Before=.*\) sysinit.target/\1/' -e 's/^WantedBy=.*/WantedBy=multi-user.target/' \
    -e 's/^\[Unit\]/&\nConditionKernelCommandLine=!giantnetes.emulated/' \
    "$root/lib/systemd/system/systemd-timesyncd.service" > "$etc/system/systemd-timesyncd.service"
  for unit in systemd-networkd.service systemd-timesyncd.service cloud-init-local.service cloud-init.service giantnetes-growfs.service; do
    systemctl --root="$root" enable -q "$unit"
  done
  # What cloud-init's generator would do, had it found a seed.
  mkdir -p "$etc/system/multi-user.target.wants"
  ln -sfn /lib/systemd/system/cloud-init.target "$etc/system/multi-user.target.wants/cloud-init.target"
  # There is no fstab: the initramfs mounts the root writable, and cloud-init would wait for a remount.
  # Debian pulls these in statically; emulated, each costs a tenth of a second or more, twice with a daemon-reload.
  while read -r name; do ln -sfn /dev/null "$etc/system/$name"; done < <(sed 's/#.*//' "$here/units.masked" | xargs -n1)
  mkdir -p "$etc/system-generators"
  for name in cloud-init systemd-cryptsetup systemd-getty systemd-gpt-auto systemd-hibernate-resume \
    systemd-integritysetup systemd-rc-local systemd-system-update systemd-sysv systemd-veritysetup; do
    ln -sfn /dev/null "$etc/system-generators/$name-generator"
  done
  ln -sfn /lib/systemd/system/multi-user.target "$etc/system/default.target"
}

# The images lie unpacked in containerd's folder, so that a first boot imports nothing. The containerd is the build
# machine's, on the disk's folder; it is stopped by its pid whatever happens.
preload() {
  local state=$out/containerd archive pid ref
  mkdir -p "$state"
  cat > "$state/config.toml" <<TOML
version = 2
root = "$root/var/lib/containerd"
state = "$state/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$state/sock"
TOML
  containerd --config "$state/config.toml" > "$state/log" 2>&1 &
  pid=$!
  # shellcheck disable=SC2064 # the pid of now
  trap "kill $pid 2>/dev/null || true" EXIT
  # `ctr version` waits for the socket by itself, for ten seconds.
  ctr -a "$state/sock" version > /dev/null || { tail -n 5 "$state/log" >&2; return 1; }
  for archive in $PRELOAD; do
    ctr -a "$state/sock" -n k8s.io images import --snapshotter overlayfs "$archive" > /dev/null
  done
  for ref in $(ctr -a "$state/sock" -n k8s.io images ls -q); do
    ctr -a "$state/sock" -n k8s.io images label "$ref" io.cri-containerd.image=managed io.cri-containerd.pinned=pinned > /dev/null
    echo "node: preloaded $ref"
  done
  kill "$pid"
  wait "$pid" || true
  trap - EXIT
  rm -rf "$state"
}

clean() {
  rm -rf "$root"/boot/{vmlinuz,System.map,initrd}* "$root"/{vmlinuz,initrd.img}* "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/{apt,debconf,ldconfig}/* "$root"/var/log/{apt,dpkg.log,alternatives.log,bootstrap.log} \
    "$root"/var/lib/cloud "$root"/var/lib/dbus/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf \
    "$root"/var/log/journal "$root"/etc/ssh "$root"/var/lib/systemd/random-seed
  # cloud-init loads these two where they are, for user data of a kind that is never used here: a second, emulated.
  rm -rf "$root"/usr/lib/python3/dist-packages/{jinja2,jsonschema}
  # The build machine's mirrors mean nothing in a guest, which gets a new image instead of new packages.
  : > "$root/etc/apt/sources.list"
  : > "$root/etc/machine-id"
  rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
  echo '127.0.0.1 localhost' > "$root/etc/hosts"
  : > "$root/etc/resolv.conf"
  chroot "$root" passwd -q -l root
  find "$root/var/log" -type f -delete
  # With these systemd takes /etc and /var to be as new as /usr and skips its first-boot rebuilding of databases.
  touch "$root/etc/.updated" "$root/var/.updated"
}

make_disk() {
  find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  # Compiled anew, not to depend on times: what Debian compiled is void for files whose time was just set back.
  chroot "$root" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11
  mkfs.ext4 -q -F -L root -U "$disk_uuid" -E "hash_seed=$disk_uuid" -e remount-ro -m 1 -d "$root" "$out/disk.raw" "$disk_size"
  qemu-img convert -f raw -O qcow2 "$out/disk.raw" "$out/disk.qcow2"
  rm -f "$out/disk.raw"
}

main
