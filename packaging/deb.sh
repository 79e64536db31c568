#!/usr/bin/env bash
# Makes build/croft_VERSION_amd64.deb out of build/croft.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1#v}
[[ $version =~ ^[0-9] ]] || version="0.0~git$version"
version=${version//-/+}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
install -D -m 755 build/croft "$root/usr/bin/croft"
install -D -m 644 packaging/croft.service "$root/lib/systemd/system/croft.service"
install -D -m 644 LICENSE "$root/usr/share/doc/croft/copyright"
install -D -m 644 CHANGELOG.md "$root/usr/share/doc/croft/CHANGELOG.md"
for shell in bash zsh fish; do
	case $shell in
	bash) to=usr/share/bash-completion/completions/croft ;;
	zsh) to=usr/share/zsh/vendor-completions/_croft ;;
	fish) to=usr/share/fish/vendor_completions.d/croft.fish ;;
	esac
	mkdir -p "$root/$(dirname $to)"
	build/croft completion $shell >"$root/$to"
done
mkdir -p "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<EOF
Package: croft
Version: $version
Architecture: amd64
Maintainer: The Croft authors <croft@localhost>
Section: admin
Priority: optional
Installed-Size: $(du -ks "$root" | cut -f1)
Depends: runc, e2fsprogs, iproute2, ca-certificates
Recommends: qemu-system-x86, qemu-utils, ovmf, user-mode-linux, busybox-static, mmdebstrap, syslinux, syslinux-common, syslinux-efi, extlinux, systemd-boot-efi, mtools, dosfstools
Description: divides a physical server into virtual servers
 Croft divides physical servers into virtual ones for many tenants, as full
 virtual machines, as guests that know that they are guests, and as systems on
 the host's own kernel, and joins them by private networks.
EOF
for script in postinst prerm postrm; do
	install -m 755 "packaging/$script" "$root/DEBIAN/$script"
done
dpkg-deb --root-owner-group --build "$root" "build/croft_${version}_amd64.deb"
