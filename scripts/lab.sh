#!/usr/bin/env bash
# Runs the tests of test/lab, and those that look at the kernel and at systemd, in a lab guest: a Debian 12 with pure
# cgroup v2, Debian's own kernel and working KVM, which QEMU emulates (AMD SVM under TCG), so that any host can run it.
# Croft is installed there from its package. What it is made of is cached; it has no network but a link to nowhere.
#   LAB_CACHE  where disks of lab guests are kept (default: /var/tmp/croft-lab-cache)
#   LAB_TIME   seconds after which it is given up (default: 3900)
# QEMU's emulation of SVM is not without faults: seen was the guest's kernel with a corrupted stack under KVM, on a host where
# its two processors truly ran at once. So they share one of the host's. Runs that fail all the same are tried again in a
# fresh guest, while there is time, and named at the end.
# It prints progress, leaves the console logs and the outputs in build/lab (those of a guest that failed in build/lab/1, 2),
# and closes with "N passed, N failed, N skipped".
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${LAB_CACHE:-/var/tmp/croft-lab-cache}
limit=${LAB_TIME:-3900}
one=2400 # seconds after which one guest is given up
out=build/lab
memory=4096 # MiB

say() { printf '\033[2m· %4d s  %s\033[0m\n' "$SECONDS" "$*" >&2; }

# The runs, in order: a name, a package, and the arguments of its test program. The guest is ten times slower than its
# host, and its guests ten times slower than that: what only computes is left to `make test`.
# Those of test/e2e have daemons of their own, beside the one of the package.
runs() {
	cat <<-'RUNS'
		install         test/lab                     -test.run=^TestInstalled
		reboot
		rebooted        test/lab                     -test.run=^TestRebooted
		life            test/e2e                     -test.run=^TestHost$/^(life|live|limits)$
		survival        test/e2e                     -test.run=^TestSurvival$
		faults          test/e2e                     -test.run=^TestFaults$/^runc$/^create$//^kill$
		cgroup          internal/cgroup
		accel           internal/engine/qemu/accel
		keeper          internal/keeper
		pool            internal/pool/dir
		hostnet         internal/hostnet/linux
		oci             internal/engine/oci
		purge           test/lab                     -test.run=^TestPurged
	RUNS
}

# Makes the guest's disk, unless it is in the cache; the last one made is kept.
image() {
	local key dir
	key=$(test/lab/image.sh recipe | sha256sum | cut -c1-16)
	dir=$cache/$key
	if [ ! -d "$dir" ]; then
		say "making the lab guest's disk from Debian's packages (2 to 4 minutes)"
		mkdir -p "$cache"
		find "$cache" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
		mkdir "$cache/making"
		test/lab/image.sh "$cache/making" >&2
		mv "$cache/making" "$dir"
	fi
	echo "$dir"
}

# Compiles the test programs, and puts them in a directory with the package.
tree() {
	local name package arguments program
	mkdir -p "$1/bin" "$1/out"
	while read -r name package arguments; do
		[ -n "$package" ] || continue
		program=${package//\//-}
		[ -e "$1/bin/$program" ] || go test -c -ldflags '-s -w' -o "$1/bin/$program" "./$package"
		[ ! -d "$package/testdata" ] || cp -rT "$package/testdata" "$1/testdata"
	done < <(runs)
	go build -ldflags '-s -w' -o "$1/bin/faultd" ./test/faultd
	cp test/lab/guest.sh "$1/"
	cp build/croft_*_amd64.deb "$1/croft.deb"
}

# Tells whether a run ended well in some guest. The first makes the guest what the others need, and belongs to each.
passed() { [ "$(cat "$out/$1.exit" 2>/dev/null)" = 0 ]; }

# Lists what is left to be run, as guest.sh reads it.
left() {
	local name package arguments
	while read -r name package arguments; do
		case $name in
		install) ;;
		reboot) ! passed rebooted || continue ;;
		*) ! passed "$name" || continue ;;
		esac
		echo "$name${package:+ ${package//\//-} $arguments -test.timeout=20m}"
	done < <(runs)
}

# Follows a log until the process ends, and shows the guest's progress.
follow() {
	tail -n +1 --pid="$1" -F "$2" 2>/dev/null | sed -u -n 's/\r$//; s/^lab: //p; /^--- /p' |
		while read -r line; do say "$line"; done
}

# Ends a process when the guest's kernel gives up.
panicked() {
	tail -n +1 --pid="$1" -F "$2" 2>/dev/null | grep -a -q -m 1 'Kernel panic' && kill "$1"
}

boot() {
	local from=$1 work=$2 qemu status=0 time=$((limit - SECONDS))
	[ "$time" -lt "$one" ] || time=$one
	left >"$work/tree/runs"
	rm -f "$work/lab.raw"
	mkfs.ext4 -q -F -L croft-lab -d "$work/tree" "$work/lab.raw" 1G
	qemu-img create -q -f qcow2 -F raw -b "$from/root.raw" "$work/root.qcow2"
	: >"$out/console.log"
	timeout -k 10 "$time" taskset -c "$(taskset -cp $$ | sed 's/.*[:,-] *//')" \
		qemu-system-x86_64 -name croft-lab -accel tcg,thread=multi -cpu EPYC,+svm -M q35 -smp 2 -m "$memory" \
		-nodefaults -no-user-config -display none -serial "file:$out/console.log" \
		-kernel "$from/vmlinuz" -initrd "$from/initrd.img" -append "root=/dev/vda rw console=ttyS0 loglevel=4" \
		-drive "file=$work/root.qcow2,if=virtio,format=qcow2,cache=unsafe" \
		-drive "file=$work/lab.raw,if=virtio,format=raw,cache=unsafe" \
		-nic user,restrict=on,model=virtio-net-pci -device virtio-rng-pci 2>"$out/qemu.log" &
	qemu=$!
	panicked "$qemu" "$out/console.log" &
	follow "$qemu" "$out/console.log" || true
	wait "$qemu" || status=$?
	[ "$status" != 124 ] || say "the guest takes longer than $time s: given up"
	return "$status"
}

# Counts what the runs printed. A run that did not end well counts as failed, whatever it printed.
results() {
	local status=0 name package arguments
	while read -r name package arguments; do
		[ -n "$package" ] || continue
		if [ ! -s "$out/$name.log" ]; then
			printf '{"Action":"fail","Package":"%s","Test":"%s was not run"}\n' "$package" "$name"
			continue
		fi
		go tool test2json -t -p "$package" <"$out/$name.log"
		if [ "$(cat "$out/$name.exit" 2>/dev/null)" != 0 ] && ! grep -a -q -- '--- FAIL' "$out/$name.log"; then
			printf '{"Action":"output","Package":"%s","Test":"%s","Output":"%s ended without a result\\n"}\n' "$package" "$name" "$name"
			printf '{"Action":"fail","Package":"%s","Test":"%s"}\n' "$package" "$name"
		fi
	done < <(runs) | go run ./test/summary || status=1
	return "$status"
}

# Runs what is left in a fresh guest. It fails if something is left then.
tell() {
	local name package
	say "booting the lab guest"
	boot "$from" "$work" || say "the guest did not power off by itself: see $out/console.log"
	grep -a 'Kernel panic' "$out/console.log" >&2 || true
	debugfs -R "rdump /out $work" "$work/lab.raw" 2>/dev/null
	cp -r "$work/out/." "$out/"
	rm -rf "$work/out"
	while read -r name package _; do
		[ -z "$package" ] || passed "$name" || return 1
	done < <(runs)
}

work=$(mktemp -d /var/tmp/croft-lab.XXXXXX)
trap 'rm -rf "$work"' EXIT
rm -rf "$out"
mkdir -p "$out"
packaging/deb.sh "$(git describe --tags --always --dirty 2>/dev/null || echo 0.0.0)" >/dev/null
say "package: $(basename build/croft_*_amd64.deb)"
from=$(image)
tree "$work/tree"
told=1
until tell || [ "$told" = 3 ] || [ "$SECONDS" -gt $((limit - 1200)) ]; do
	mkdir "$out/$told"
	find "$out" -maxdepth 1 -type f ! -name '*.exit' -exec cp -t "$out/$told" {} +
	say "in a fresh guest: $(left | cut -d' ' -f1 | paste -sd' ')"
	again="${again:-} $(left | cut -d' ' -f1 | grep -v -e '^install$' -e '^reboot$' | paste -sd' ')"
	told=$((told + 1))
done
status=0
results || status=$?
[ -z "${again:-}" ] || say "unsteady: tried again were$again; the first tries are in $out/1"
say "console, journals and outputs are in $out"
exit "$status"
