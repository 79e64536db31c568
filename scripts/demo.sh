#!/usr/bin/env bash
# The demonstration: one host, divided three ways.
#   demo.sh up    starts a daemon of its own, and three servers of one tenant, one of each model, on one private network
#   demo.sh down  removes every trace of it
# The demo has a network namespace and directories of its own: the host's network, and a Croft that serves on this machine,
# are not touched. A second `up` takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

name=croft-demo
state=/var/lib/$name
run=/run/$name
group=croft-$(printf %s "$state" | sha256sum | cut -c1-6)
croft=$PWD/build/croft
export CROFT_SOCKET=$run/croft.sock

bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || bold='' dim='' plain=''
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '%s· %s%s\n' "$dim" "$*" "$plain"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "run it as root: it makes namespaces, control groups and devices"

# The process of the demo's daemon; a number in the file may be another's by now.
daemon() {
	local pid
	pid=$(cat "$run/daemon.pid" 2>/dev/null) && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q " daemon --state-dir $state " && echo "$pid"
}

alive() { daemon >/dev/null; }

answers() { "$croft" host list >/dev/null 2>&1; }

start_daemon() {
	if ! alive; then
		mkdir -p "$state" "$run"
		chmod 711 "$state" "$run"
		ip netns list | grep -qw "$name" || ip netns add "$name"
		ip -n "$name" link set lo up
		say "starting the daemon (state in $state, log in $state/daemon.log)"
		setsid "$croft" daemon --state-dir "$state" --run-dir "$run" --netns "$name" >>"$state/daemon.log" 2>&1 </dev/null &
		echo $! >"$run/daemon.pid"
	fi
	for _ in $(seq 100); do
		answers && return
		kill -0 "$(cat "$run/daemon.pid")" 2>/dev/null || { tail -n 5 "$state/daemon.log" >&2; fail "the daemon ended"; }
		sleep 0.1
	done
	fail "the daemon does not answer; see $state/daemon.log"
}

# Makes a server unless it is there, and starts it unless it runs.
server() {
	local server=$1
	shift
	if ! "$croft" server show "$server" >/dev/null 2>&1; then
		"$croft" server create "$server" --image micro --network corp "$@"
	elif [ "$("$croft" server show "$server" -o json | jq -r .status.phase)" != running ]; then
		"$croft" server start "$server"
	fi
}

field() { "$croft" server show "$1" -o json | jq -r "$2"; }

# Waits until a server's userspace was seen.
ready() {
	for _ in $(seq 300); do
		[ "$(field "$1" '.status.ready // ""')" = "" ] || return 0
		sleep 0.1
	done
	fail "$1 did not come up; try: $croft --socket $CROFT_SOCKET server log $1"
}

# Seconds from the request to userspace of a server's first start, or from a later start.
took() {
	"$croft" server show "$1" -o json | jq -r '
		def t: sub("\\.[0-9]+"; "") as $whole | (capture("\\.(?<f>[0-9]+)") // {f: "0"}) as $part
			| ($whole | fromdateiso8601) + ("0." + $part.f | tonumber);
		((.status.ready | t) - (.status.started | t)) as $start | ((.status.started | t) - (.created | t)) as $wait
		| if $wait < 5 then $wait + $start else $start end | . * 100 | round / 100'
}

memory() {
	"$croft" top --once -o json | jq -r --arg s "$1" '.[] | select(.server == $s) | .memory' | numfmt --from=auto --to=iec-i --suffix=B
}

table() {
	title "Three servers of one tenant, one of each model, on one network"
	printf '%-10s %-6s %-8s %-12s %18s %18s\n' SERVER MODEL ENGINE ADDRESS "TO USERSPACE (s)" "MEMORY ON THE HOST"
	local s
	for s in demo-os demo-para demo-full; do
		printf '%-10s %-6s %-8s %-12s %18s %18s\n' "$s" "$(field $s .spec.model)" "$(field $s .status.engine)" \
			"$(field $s '.status.ports[0].address')" "$(took $s)" "$(memory $s)"
	done
	"$croft" host show -o json 2>/dev/null | jq -r '.status.engines[] | select(.name == "qemu") | select(.reason) | "  qemu: \(.reason)"' || true
}

# What a server's web server says to another, by name.
asks() {
	local from=$1 to=$2 answer
	if [ "$(field "$from" .spec.model)" = os ]; then
		answer=$("$croft" server exec "$from" -- wget -qO- "http://$to/" | tr -d '\r\n')
	else # a guest with a kernel of its own is asked at its console
		answer=$(printf 'echo "answer: $(wget -qO- http://%s/)"\n' "$to" | "$croft" server console "$from" 2>/dev/null | tr -d '\r' | sed -n "s/^answer: \\($to.*\\)/\\1/p" | tail -n 1)
	fi
	[ -n "$answer" ] || fail "$from does not reach $to"
	printf '  %-10s → http://%-10s %s\n' "$from" "$to" "$answer"
}

names() {
	title "They reach each other by name"
	asks demo-os demo-para
	asks demo-os demo-full
	asks demo-para demo-os
	asks demo-para demo-full
	asks demo-full demo-os
	asks demo-full demo-para
}

# Two servers that want every processor for themselves, with entitlements of 3 to 1.
shares() {
	title "Two greedy servers, entitled to 3 and 1 parts of the processors"
	local s cpus=$(nproc)
	if ! { server greedy-a --model os --memory 64MiB --cpus "$cpus" --entitlement 600m &&
		server greedy-b --model os --memory 64MiB --cpus "$cpus" --entitlement 200m; }; then
		say "left out: other servers have what these two would be entitled to"
		"$croft" server delete greedy-a --force 2>/dev/null || true
		return
	fi
	for s in greedy-a greedy-b; do
		"$croft" server exec $s -- sh -c "for i in \$(seq $cpus); do timeout 8 sh -c 'while :; do :; done' & done >/dev/null 2>&1"
	done
	"$croft" top --once -o json >/dev/null
	sleep 5 # the span that they are measured over
	"$croft" top --once -o json | jq -r '
		[.[] | select(.server | startswith("greedy")) | {server, cpu: (.cpu | if endswith("m") then rtrimstr("m") | tonumber else tonumber * 1000 end)}]
		| (.[] | "  \(.server)  \(.cpu / 1000) CPUs"), "  ratio     \(.[0].cpu / .[1].cpu * 100 | round / 100) to 1"'
	"$croft" server delete greedy-a --force
	"$croft" server delete greedy-b --force
}

up() {
	start_daemon
	if ! "$croft" image show micro >/dev/null 2>&1; then
		say "building the image micro from Debian's packages"
		"$croft" image build micro
	fi
	"$croft" network show corp >/dev/null 2>&1 || "$croft" network create corp
	server demo-os --model os --memory 64MiB
	server demo-para --model para --memory 128MiB
	server demo-full --model full --memory 256MiB
	for s in demo-os demo-para demo-full; do ready $s; done
	table
	names
	shares
	title "The daemon runs. Try"
	cat <<-EOF
	  export CROFT_SOCKET=$CROFT_SOCKET PATH=$PWD/build:\$PATH
	  croft server list
	  croft server exec demo-os -- sh          # a shell in the server on the host's kernel
	  croft server console demo-full           # the console of the virtual machine; leave with ctrl-]
	  croft server create web --model os --image micro --network corp --cap 300m
	  croft top
	  make demo-down                           # remove every trace
	EOF
}

# Deletes the servers of every tenant: what they were granted of the host is given back.
delete_servers() {
	local tenant server
	start_daemon
	"$croft" server list --all-tenants -o json | jq -r '.[] | "\(.tenant) \(.name)"' | while read -r tenant server; do
		"$croft" --tenant "$tenant" server delete "$server" --force </dev/null || {
			"$croft" --tenant "$tenant" server edit "$server" --set deleteProtection=false
			"$croft" --tenant "$tenant" server delete "$server" --force
		} </dev/null
	done
}

end_daemon() {
	local pid
	pid=$(daemon) || return 0
	kill "$pid"
	for _ in $(seq 100); do
		alive || return 0
		sleep 0.1
	done
	kill -9 "$pid"
}

# Ends what still runs in the control groups of the demo's servers.
end_guests() {
	local dir pid
	find /sys/fs/cgroup -type d -path "*/$group/*" 2>/dev/null | while read -r dir; do
		while read -r pid; do kill -9 "$pid"; done <"$dir/cgroup.procs"
	done 2>/dev/null || true
}

# Takes away what the daemon made outside of its state.
clean() { "$croft" daemon --state-dir "$state" --run-dir "$run" --netns "$name" --clean; }

mounted() { findmnt -rno TARGET | grep -E "^($state|$run)(/|\$)"; }

down() {
	if [ -d "$state" ] || [ -d "$run" ]; then
		[ -x "$croft" ] || fail "$croft is missing: run make build"
		(delete_servers) || say "some servers were not deleted; their guests are ended"
		end_daemon
		for _ in $(seq 50); do # the kernel frees what ended guests had in its own time
			end_guests
			clean >/dev/null 2>&1 && break
			sleep 0.1
		done
		clean
	fi
	if ip netns list | grep -qw "$name"; then ip netns delete "$name"; fi
	if mounted; then fail "that is still mounted: unmount it and try again"; fi
	rm -rf --one-file-system "$state" "$run"
	if [ -d /var/lib/croft-ids ]; then
		find /var/lib/croft-ids -lname "$state/*" -xtype l -delete
		rmdir --ignore-fail-on-non-empty /var/lib/croft-ids
	fi
	echo "the demo is gone"
}

case "${1:-up}" in
up) up ;;
down) down ;;
*) echo "usage: demo.sh up|down" >&2; exit 2 ;;
esac
