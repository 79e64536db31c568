#!/usr/bin/env bash
# Runs `go test` with the arguments given, prints each package's line and every failure, and closes with one line that
# counts the tests: "N passed, N failed, N skipped". Tests that were skipped are listed with their reasons.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# One package at a time: tests of one mount, make namespaces and count what is left while they run.
go test -p 1 -count=1 -timeout 40m -json "$@" >"$log"
status=$?
go run ./test/summary <"$log" || status=1
exit $status
