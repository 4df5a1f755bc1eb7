#!/usr/bin/env bash
# build.sh OUT   Makes of a node disk what EC2 boots: OUT/disk.qcow2, with a partition table, a boot loader for UEFI (the kernel itself),
# the giantnetes binary, which such a node gets its keys by, and what cloud-init has to know. From the environment: NODE, the folder of the
# node disk, and BINARY. It mounts nothing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1
# Both fixed, so that two builds differ in nothing.
disk_id=6b6f6e67-6e65-7465-7300-000000000002
esp_id=6b6f6e67
loader_mib=64
stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub
cmdline='root=LABEL=root console=ttyS0 quiet loglevel=3 systemd.show_status=false panic=10 audit=0 8250.nr_uarts=1'

: "${NODE:?}" "${BINARY:?}"
[[ -f $stub ]] || { echo "$stub is missing: install systemd-boot-efi"; exit 1; }

# The node's files, into its file system as it is.
add_files() {
  local file path folder
  {
    echo "write $BINARY /usr/local/bin/giantnetes"
    echo "sif /usr/local/bin/giantnetes mode 0100755"
    # Debian's is off in a node whose disk has no partitions.
    echo "rm /etc/systemd/system/systemd-repart.service"
    for folder in $(cd "$here/rootfs" && find . -mindepth 1 -type d | LC_ALL=C sort); do echo "mkdir ${folder#.}"; done
    for file in $(cd "$here/rootfs" && find . -type f | LC_ALL=C sort); do
      path=${file#.}
      echo "write $here/rootfs$path $path"
      echo "sif $path mode 0100644"
    done
  } > "$out/commands"
  E2FSPROGS_FAKE_TIME=1735689600 debugfs -w -f "$out/commands" "$out/root.raw" 2>&1 | tee "$out/said" > /dev/null
  # It goes on after what failed. Folders may be there.
  if grep -qvE '^debugfs[: ]|^Allocated inode|already exists|^$' "$out/said"; then cat "$out/said"; exit 1; fi
  # It fails where there is something to mend.
  e2fsck -fn "$out/root.raw" > /dev/null
  rm "$out/commands" "$out/said"
}

# The kernel with its command line and initramfs, as one program of UEFI's.
make_loader() {
  printf '%s\0' "$cmdline" > "$out/cmdline"
  objcopy --add-section .cmdline="$out/cmdline" --change-section-vma .cmdline=0x30000 \
    --add-section .linux="$NODE/vmlinuz" --change-section-vma .linux=0x2000000 \
    --add-section .initrd="$NODE/initrd.img" --change-section-vma .initrd=0x3000000 "$stub" "$out/BOOTX64.EFI"
  truncate -s "${loader_mib}M" "$out/loader.raw"
  mkfs.vfat -n LOADER -i "$esp_id" --invariant "$out/loader.raw" > /dev/null
  touch -d @1735689600 "$out/BOOTX64.EFI"
  mmd -i "$out/loader.raw" ::/EFI ::/EFI/BOOT
  mcopy -m -i "$out/loader.raw" "$out/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI
  rm "$out/cmdline" "$out/BOOTX64.EFI"
}

# The root is last, so that it can grow.
make_disk() {
  local root_mib
  root_mib=$(($(stat -c %s "$out/root.raw") >> 20))
  truncate -s "$((1 + loader_mib + root_mib + 1))M" "$out/disk.raw"
  sfdisk --quiet "$out/disk.raw" <<TABLE
label: gpt
label-id: $disk_id
first-lba: 2048
start=2048, size=$((loader_mib * 2048)), type=U, name=loader, uuid=6b6f6e67-6e65-7465-7300-000000000003
start=$(((1 + loader_mib) * 2048)), size=$((root_mib * 2048)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root, uuid=6b6f6e67-6e65-7465-7300-000000000004
TABLE
  dd if="$out/loader.raw" of="$out/disk.raw" bs=1M seek=1 conv=notrunc,sparse status=none
  dd if="$out/root.raw" of="$out/disk.raw" bs=1M seek=$((1 + loader_mib)) conv=notrunc,sparse status=none
  rm "$out/loader.raw" "$out/root.raw"
  qemu-img convert -f raw -O qcow2 "$out/disk.raw" "$out/disk.qcow2"
  rm "$out/disk.raw"
}

mkdir -p "$out"
qemu-img convert -f qcow2 -O raw "$NODE/disk.qcow2" "$out/root.raw"
add_files
make_loader
make_disk
cp "$NODE/kubernetes-version" "$out/"
