package main

import (
	"context"
	"fmt"
	"path"
	"strings"
)

// bench makes rows. They are named here too, so that they can be chosen, and listed without being measured.
type bench struct {
	Rows []string
	Run  func(ctx context.Context, l *lab) ([]Row, error)
}

// registry lists what is measured, in order. A new row is a function in its area's file, and a line here.
var registry = []bench{
	{[]string{"os/create", "os/create-lxd", "os/delete"}, osLife},
	{[]string{"os/create-100"}, osCreateMany},
	{[]string{"os/memory"}, osMemory},
	{[]string{"uml/userspace"}, umlUserspace},
	{[]string{"microvm/userspace"}, microvmUserspace},
	{[]string{"qemu/userspace"}, qemuUserspace},
	{[]string{"cpu/entitlement"}, cpuEntitlement},
	{[]string{"cpu/cap"}, cpuCap},
	{[]string{"daemon/ready", "daemon/rss"}, daemonIdle},
	{[]string{"daemon/adopt-200"}, daemonAdopt},
	{[]string{"api/list-1000"}, apiList},
}

// choose picks the benches of which a row matches one of the comma-separated patterns (path.Match); all for "".
func choose(all []bench, patterns string) ([]bench, error) {
	if patterns == "" {
		return all, nil
	}
	var out []bench
	for _, b := range all {
		if matches(b.Rows, strings.Split(patterns, ",")) {
			out = append(out, b)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no row is named %s: see -list", patterns)
	}
	return out, nil
}

func matches(rows, patterns []string) bool {
	for _, row := range rows {
		for _, p := range patterns {
			if ok, err := path.Match(p, row); ok && err == nil {
				return true
			}
		}
	}
	return false
}
