#!/bin/bash
# Runs in the lab guest at each of its boots, by croft-lab.service. /lab holds the package, the test programs and the
# list of runs; what they print is left in /lab/out. The list is worked off across a reboot of the guest, and the guest
# powers itself off after it.
#
# A line of /lab/runs: a name, a program of /lab/bin, its arguments; or the word reboot.
set -u
cd /lab || exit 1
mkdir -p out

say() { printf 'lab: %s\n' "$*"; }

finish() {
	journalctl -b --no-pager -o short-monotonic >"out/journal-$boot.txt"
	sync
	systemctl --no-block "$1"
	exec sleep infinity # until the system stops this unit
}

boot=$(($(cat out/boot 2>/dev/null || echo 0) + 1))
echo "$boot" >out/boot
done_lines=$(cat out/done 2>/dev/null || echo 0)
say "boot $boot: $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"

line=0
while read -r name program arguments <&3; do
	line=$((line + 1))
	[ "$line" -gt "$done_lines" ] || continue
	echo "$line" >out/done
	sync
	if [ "$name" = reboot ]; then
		say "reboot"
		finish reboot
	fi
	say "run $name"
	began=$SECONDS
	# shellcheck disable=SC2086  # arguments are words
	CROFT_LAB=1 CROFT_BIN=/usr/bin/croft CROFT_FAULTD=/lab/bin/faultd "bin/$program" -test.v=test2json $arguments 2>&1 </dev/null | tee "out/$name.log" |
		grep -a --line-buffered -E -o -- '--- (FAIL.*|PASS: Test(Installed|Rebooted|Purged)/.*)'
	status=${PIPESTATUS[0]}
	echo "$status" >"out/$name.exit"
	say "$name: exit code $status, $((SECONDS - began)) s"
	if [ "$name" = install ] && [ "$status" != 0 ]; then
		break # all others follow from it
	fi
done 3<runs
say "done"
finish poweroff
