package engine

import (
	"testing"

	"github.com/croftproject/croft/api"
)

func TestOOMScore(t *testing.T) {
	part := api.Memory{Limit: api.GiB, Reservation: api.GiB - 1}
	nesting := []api.Grant{{Kind: api.GrantNesting}}
	for name, test := range map[string]struct {
		spec api.ServerSpec
		want int
	}{
		"all is reserved":  {api.ServerSpec{Memory: api.Memory{Limit: api.GiB, Reservation: api.GiB}}, 0},
		"a part":           {api.ServerSpec{Memory: part}, unreserved},
		"huge pages":       {api.ServerSpec{Memory: api.Memory{Limit: api.GiB, Reservation: api.MiB, HugePages: true}}, 0},
		"a part, nesting":  {api.ServerSpec{Model: api.ModelOS, Memory: part, Grants: nesting}, 0},
		"own kernel":       {api.ServerSpec{Model: api.ModelPara, Memory: part, Grants: nesting}, unreserved},
		"a part, a device": {api.ServerSpec{Memory: part, Grants: []api.Grant{{Kind: api.GrantDevice}}}, unreserved},
	} {
		if got := OOMScore(&test.spec); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
