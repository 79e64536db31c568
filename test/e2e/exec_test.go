package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testExec runs processes in a server of model os.
func testExec(t *testing.T, w *world.World, name string) {
	for what, c := range map[string]struct {
		exec           client.Exec
		code           int
		stdout, stderr string
	}{
		"code":          {client.Exec{Args: []string{"sh", "-c", "exit 7"}}, 7, "", ""},
		"signal":        {client.Exec{Args: []string{"sh", "-c", "kill -9 $$"}}, 137, "", ""},
		"streams":       {client.Exec{Args: []string{"sh", "-c", "echo out; echo err >&2"}}, 0, "out\n", "err\n"},
		"stdin":         {client.Exec{Args: []string{"wc", "-c"}, Stdin: strings.NewReader(strings.Repeat("x", 1<<20))}, 0, fmt.Sprintln(1 << 20), ""},
		"environment":   {client.Exec{Args: []string{"sh", "-c", "echo $A"}, Env: []string{"A=b c"}}, 0, "b c\n", ""},
		"user":          {client.Exec{Args: []string{"sh", "-c", "id -u; id -g"}, User: "1000:1001"}, 0, "1000\n1001\n", ""},
		"directory":     {client.Exec{Args: []string{"pwd"}, Dir: "/var/tmp"}, 0, "/var/tmp\n", ""},
		"terminal":      {client.Exec{Args: []string{"sh", "-c", "test -t 0 && stty size"}, TTY: true, Size: client.WinSize{Rows: 33, Cols: 44}}, 0, "33 44\r\n", ""},
		"no terminal":   {client.Exec{Args: []string{"test", "-t", "0"}}, 1, "", ""},
		"left behind":   {client.Exec{Args: []string{"sh", "-c", "sleep 1000 & exit 3"}}, 3, "", ""},
		"shell's words": {client.Exec{Args: []string{"echo", "$(id)", "a;b", "*"}}, 0, "$(id) a;b *\n", ""},
	} {
		var stdout, stderr bytes.Buffer
		c.exec.Stdout, c.exec.Stderr = &stdout, &stderr
		code, err := w.Client.Exec(t.Context(), world.Tenant, name, c.exec)
		if err != nil || code != c.code || stdout.String() != c.stdout || stderr.String() != c.stderr {
			t.Errorf("exec, %s: code %d, stdout %q, stderr %q, %v; want %d, %q, %q", what, code, stdout.String(), stderr.String(), err, c.code, c.stdout, c.stderr)
		}
	}
	for _, e := range []client.Exec{
		{Args: []string{"nothing-here"}}, {Args: []string{"true"}, User: "nobody-knows"}, {Args: []string{"true"}, Dir: "/etc/passwd"},
	} {
		_, err := w.Client.Exec(t.Context(), world.Tenant, name, e)
		wantCode(t, err, api.CodeInvalid, "")
	}
}
