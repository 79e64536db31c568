#!/usr/bin/env bash
# Runs `go test` with the arguments given, prints each package's line as it ends and then every failure, and closes with
# one line that counts the tests: "N passed, N failed, N skipped". Tests that were skipped are listed with their reasons.
#
# A test of real guests that failed is run once more by itself, and counts as passed if it passes then; it is listed as
# unsteady. Guests on a busy machine can take longer than a test is patient; a fault fails twice. What is tested without
# guests has no such excuse, and neither has a race.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/summary" ./test/summary || exit 1
flags=()
for argument in "$@"; do
	case $argument in
	./* | .) ;;
	*) flags+=("$argument") ;;
	esac
done
# One package at a time: tests of one mount, make namespaces and count what is left while they run.
go test -p 1 -count=1 -timeout 40m -json "$@" | tee "$work/log" | "$work/summary" -progress
status=${PIPESTATUS[0]}
touch "$work/again"
if [ "$status" -ne 0 ]; then
	while read -r package tests; do
		[[ $package =~ /(engine|hostnet|keeper|test)/ && " $* " != *" -race "* ]] || continue
		echo "again $package $tests"
		go test -count=1 -timeout 20m -json ${flags[@]+"${flags[@]}"} -run "$tests" "$package" >>"$work/again"
	done < <("$work/summary" -failed <"$work/log")
fi
"$work/summary" -again "$work/again" <"$work/log"
