package qemu

import (
	"testing"

	"github.com/croftproject/croft/api"
)

// A PCI device is handed over whole: nothing of what would have no effect is taken.
func TestDeviceGrant(t *testing.T) {
	for name, test := range map[string]struct {
		grant   api.Grant
		pointer string // of the only fault; empty: there is none
	}{
		"plain":     {api.Grant{Source: "0000:01:00.0"}, ""},
		"a node":    {api.Grant{Source: "/dev/null"}, "/spec/grants/0/source"},
		"read-only": {api.Grant{Source: "0000:01:00.0", ReadOnly: true}, "/spec/grants/0/readOnly"},
		"a target":  {api.Grant{Source: "0000:01:00.0", Target: "/dev/x"}, "/spec/grants/0/target"},
	} {
		t.Run(name, func(t *testing.T) {
			test.grant.Kind = api.GrantDevice
			errs := validateFull(&api.ServerSpec{
				Model: api.ModelFull, CPU: api.CPU{Count: 1}, Memory: api.Memory{Limit: api.GiB}, Grants: []api.Grant{test.grant},
			})
			if test.pointer == "" && len(errs) == 0 {
				return
			}
			if len(errs) != 1 || errs[0].Pointer != test.pointer || errs[0].Code != api.CodeInvalid {
				t.Errorf("refused with %+v, want one at %q", errs, test.pointer)
			}
		})
	}
}
