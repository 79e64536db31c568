package cli

import (
	"testing"

	"github.com/croftproject/croft/api"
)

// The words are those of runc and crun.
func TestStartCode(t *testing.T) {
	for _, c := range []struct {
		said string
		want int
	}{
		{`exec failed: unable to start container process: exec: "nope": executable file not found in $PATH`, 127},
		{`exec failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory`, 127},
		{"executable file `nope` not found in $PATH: No such file or directory", 127},
		{`exec failed: unable to start container process: exec: "/etc/passwd": permission denied`, 126},
		{`exec /bin/other: exec format error`, 126},
		{`exec failed: unable to start container process: chdir to cwd ("/nope") set in config.json failed: no such file or directory`, 126},
		{`the guest has no user "nobody-such"`, 126},
	} {
		if got := startCode(api.Errorf(api.CodeInvalid, "%s", c.said)); got != c.want {
			t.Errorf("%s: got %d, want %d", c.said, got, c.want)
		}
	}
}
