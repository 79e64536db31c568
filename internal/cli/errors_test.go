package cli

import (
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
)

// What is short is said once, in sizes that people read.
func TestReportShortages(t *testing.T) {
	short := []api.Shortage{{Resource: "memory", Where: "h", Asked: "309816MiB", Free: "21800512KiB", Short: "295451072KiB"}}
	for _, c := range []struct{ name, detail, want string }{
		{"bare", "no host has room", "no host has room\n  memory on h: asked 302.6GiB, free 20.8GiB, short by 281.8GiB\n"},
		{"said", "no room: memory: 302.6GiB asked of h, 20.8GiB free", "no room: memory: 302.6GiB asked of h, 20.8GiB free\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			p := api.Errorf(api.CodeCapacity, "%s", c.detail)
			p.Short = short
			reportProblem(&out, "", p)
			if out.String() != c.want {
				t.Errorf("got %q, want %q", out.String(), c.want)
			}
		})
	}
}

// Advice can be followed as it is written.
func TestAdvice(t *testing.T) {
	quota := api.Errorf(api.CodeQuota, "the quota of tenant reseller does not allow it")
	quota.Short = []api.Shortage{{Resource: "servers", Where: "reseller"}}
	address := api.Errorf(api.CodeCapacity, "network corp has no free address")
	address.Short = []api.Shortage{{Resource: "address", Where: "corp"}}
	for _, c := range []struct {
		name    string
		command []string
		problem *api.Problem
		want    string
	}{
		{"quota", []string{"server", "create"}, quota, "croft tenant show reseller shows the quota and what is used of it"},
		{"no address", []string{"server", "create"}, address, "take another network, or delete servers that are not needed in this one"},
		{"protected server", []string{"server", "delete"}, api.Errorf(api.CodeProtected, "server web is protected against deletion"),
			"take the protection off first: croft server edit NAME --set deleteProtection=false"},
		{"protected tenant", []string{"tenant", "delete"}, api.Errorf(api.CodeProtected, "tenant default is the operator's own"), ""},
		{"running server", []string{"server", "delete"}, api.Errorf(api.CodeWrongState, "server web is running"), "stop it first, or delete it with --force"},
		{"running job", []string{"job", "delete"}, api.Errorf(api.CodeWrongState, "job build-x is running"), ""},
		{"no server", []string{"server", "show"}, api.Errorf(api.CodeNotFound, "there is no server %q", "x"),
			"croft server list shows what there is; --tenant chooses another tenant"},
		{"no host", []string{"host", "show"}, api.Errorf(api.CodeNotFound, "there is no host %q", "x"), "croft host list shows what there is"},
		{"no tenant", []string{"server", "list"}, api.Errorf(api.CodeNotFound, "there is no tenant %q", "x"), "croft tenant list shows what there is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, _, err := New().Find(c.command)
			if err != nil {
				t.Fatal(err)
			}
			if got := adviceFor(c.problem, cmd); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// A grant that is not allowed is not mended by being root.
func TestAdviceForGrants(t *testing.T) {
	p := api.Errorf(api.CodeForbidden, "the request has 1 invalid field(s)")
	p.Errors = []api.FieldError{{Pointer: "/spec/grants/0", Code: api.CodeForbidden}}
	if hint := adviceFor(p, New()); !strings.Contains(hint, "tenant edit") {
		t.Errorf("advice: %s", hint)
	}
}
