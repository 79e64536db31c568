#!/usr/bin/env bash
# Makes build/croft_VERSION_amd64.deb out of build/croft:
#   deb.sh VERSION   as git describe tells it
# The same commit and the same Go make the same package, byte for byte.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
umask 022

# A build without a tag is older than every release, and newer than the builds of earlier commits.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
version=${1#v}
[[ $version =~ ^[0-9]+\.[0-9] ]] || version="0.0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version"
version=${version//-/+}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
install -D -m 755 build/croft "$root/usr/bin/croft"
install -D -m 644 packaging/croft.service "$root/lib/systemd/system/croft.service"
install -D -m 644 packaging/default "$root/etc/default/croft"

doc=$root/usr/share/doc/croft
install -D -m 644 packaging/copyright "$doc/copyright"
for file in README.md CHANGELOG.md; do
	[ ! -e "$file" ] || install -m 644 "$file" "$doc/$file"
done
maintainer=$(sed -n 's/^Maintainer: //p' packaging/control)
printf 'croft (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' \
	"$version" "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"

completion() {
	mkdir -p "$root/$(dirname "$2")"
	build/croft completion "$1" >"$root/$2"
}
completion bash usr/share/bash-completion/completions/croft
completion zsh usr/share/zsh/vendor-completions/_croft
completion fish usr/share/fish/vendor_completions.d/croft.fish

mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$(du -ks --apparent-size "$root" | cut -f1)/" packaging/control >"$root/DEBIAN/control"
echo /etc/default/croft >"$root/DEBIAN/conffiles"
(cd "$root" && find usr lib -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
for script in postinst prerm postrm; do
	install -m 755 "packaging/$script" "$root/DEBIAN/$script"
done
rm -f build/croft_*_amd64.deb
dpkg-deb --root-owner-group -Zgzip --build "$root" "build/croft_${version}_amd64.deb"
