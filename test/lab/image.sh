#!/usr/bin/env bash
# Makes the disk of the lab guest and the files that it boots from, in an empty directory:
#   image.sh DIR     makes DIR/{root.raw,vmlinuz,initrd.img}
#   image.sh recipe  prints everything that decides what they hold
# The guest is a plain Debian 12 under systemd with Debian's kernel and what the package of Croft depends on and
# recommends, but not Croft itself. A unit runs /lab/guest.sh of the disk labelled croft-lab at each boot.
set -euo pipefail
cd "$(dirname "$0")/../.."

suite=bookworm
# What a server has anyway, and what tests use: ip, ping, ps.
packages=(systemd-sysv udev dbus kmod procps iproute2 iputils-ping linux-image-cloud-amd64)
# With what the package names.
mapfile -t -O "${#packages[@]}" packages < <(sed -n -E 's/^(Depends|Recommends): //p' packaging/control | tr -s ', ' '\n' | grep .)
size=4G

recipe() {
	printf '%s\n' "$suite" "${packages[@]}"
	cat test/lab/image.sh
	date -u +%Y-%m # so that the packages don't grow old
}

if [ "${1:?}" = recipe ]; then
	recipe
	exit
fi
to=$1
tree=$to/tree

include=$(IFS=,; echo "${packages[*]}")
mmdebstrap --quiet --mode=root --variant=minbase --include="$include" \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-include=/usr/share/doc/croft/*' \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" && printf "MODULES=list\n" >"$1/etc/initramfs-tools/conf.d/lab"' \
	--essential-hook='printf "%s\n" virtio_pci virtio_blk ext4 crc32c_generic >"$1/usr/share/initramfs-tools/modules.d/lab"' \
	"$suite" "$tree"

cat >"$tree/etc/systemd/system/croft-lab.service" <<'UNIT'
[Unit]
Description=Tests of Croft in the lab guest
RequiresMountsFor=/lab
After=network.target croft.service
[Service]
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/bin/bash /lab/guest.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TasksMax=infinity
[Install]
WantedBy=multi-user.target
UNIT
cat >"$tree/etc/fstab" <<'FSTAB'
/dev/vda / ext4 defaults 0 1
LABEL=croft-lab /lab ext4 defaults 0 2
FSTAB
mkdir -p "$tree/lab"
echo croft-lab >"$tree/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 croft-lab\n' >"$tree/etc/hosts"
: >"$tree/etc/machine-id"
rm -f "$tree/etc/resolv.conf"
printf '[Match]\nName=en*\n[Network]\nDHCP=ipv4\n' >"$tree/etc/systemd/network/uplink.network"
systemctl --root="$tree" --quiet enable croft-lab.service systemd-networkd.service systemd-networkd-wait-online.service
# The console is the tests'. The rest is not of use without a network, and costs seconds of emulation.
systemctl --root="$tree" --quiet mask serial-getty@ttyS0.service getty@tty1.service apt-daily.timer apt-daily-upgrade.timer \
	e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer

cp "$tree"/boot/vmlinuz-* "$to/vmlinuz"
cp "$tree"/boot/initrd.img-* "$to/initrd.img"
mkfs.ext4 -q -F -L croft-root -E lazy_itable_init=0 -d "$tree" "$to/root.raw" "$size"
rm -rf "$tree"
