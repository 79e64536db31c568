#!/usr/bin/env bash
# Installs what Croft needs on a Debian 12 machine, as root, and nothing that is there already.
#   setup.sh run     what a host needs at run time
#   setup.sh build   and what building needs
#   setup.sh test    and what the tests and the lab need
#   setup.sh peers   the peers that `make bench` compares with
# It prints what it does, one line a step, and is quick where there is nothing to do.
set -euo pipefail

runtime=(
	runc                        # engine of model os
	qemu-system-x86 qemu-utils  # engines qemu and microvm; disk images
	ovmf                        # UEFI firmware
	user-mode-linux             # engine uml
	busybox-static mmdebstrap   # the built-in images …
	syslinux syslinux-common syslinux-efi extlinux systemd-boot-efi mtools dosfstools # … and their boot loaders
	e2fsprogs iproute2 ca-certificates
)
build=(make git dpkg-dev jq)
tests=(gcc libc6-dev iputils-ping socat xfsprogs nftables iperf3 genisoimage isolinux zstd)
peers=(lxd lxd-client libvirt-daemon-system libvirt-clients)
go_version=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")

say() { printf '\033[2m· %s\033[0m\n' "$*" >&2; }

# Packages of the list that are not installed.
missing() {
	local p
	for p in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || printf '%s\n' "$p"
	done
}

install() {
	local want
	mapfile -t want < <(missing "$@")
	[ "${#want[@]}" -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || { echo "setup: these packages are missing: ${want[*]}. Run it as root." >&2; exit 1; }
	say "installing ${want[*]}"
	# A service that a package brings is not ours to start: policy-rc.d(8), via invoke-rc.d.
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq -o DPkg::Lock::Timeout=120 update
	apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "${want[@]}" >/tmp/croft-setup.log 2>&1 || {
		tail -n 20 /tmp/croft-setup.log >&2
		exit 1
	}
}

# A Go that is new enough: on the PATH, in /usr/local/go, or Go's own toolchain module, put where the Makefile looks first.
new_enough() {
	command -v "$1" >/dev/null &&
		[ "$(printf '%s\n' "go$go_version" "$(GOTOOLCHAIN=local "$1" env GOVERSION)" | sort -V | head -n 1)" = "go$go_version" ]
}

install_go() {
	local own=/usr/local/lib/croft-go
	new_enough "$own/bin/go" && return
	rm -rf "$own"
	new_enough go && return
	if new_enough /usr/local/go/bin/go; then
		ln -s /usr/local/go "$own"
		return
	fi
	install golang-go
	say "fetching Go $go_version"
	local module="golang.org/toolchain@v0.0.1-go$go_version.linux-amd64" cache
	(cd / && go mod download "$module")
	cache="$(go env GOMODCACHE)/$module"
	cp -r "$cache" "$own"
	chmod -R u+w "$own"
	chmod -R a+rx "$own/bin" "$own/pkg/tool"
}

case "${1:-run}" in
run) install "${runtime[@]}" ;;
build) install "${runtime[@]}" "${build[@]}"; install_go ;;
test) install "${runtime[@]}" "${build[@]}" "${tests[@]}"; install_go ;;
peers) install "${peers[@]}" ;;
*) echo "usage: setup.sh run|build|test|peers" >&2; exit 2 ;;
esac
