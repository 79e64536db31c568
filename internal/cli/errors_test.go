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

// A grant that is not allowed is not mended by being root.
func TestAdviceForGrants(t *testing.T) {
	p := api.Errorf(api.CodeForbidden, "the request has 1 invalid field(s)")
	p.Errors = []api.FieldError{{Pointer: "/spec/grants/0", Code: api.CodeForbidden}}
	if hint := adviceFor(p, New()); !strings.Contains(hint, "tenant edit") {
		t.Errorf("advice: %s", hint)
	}
}
