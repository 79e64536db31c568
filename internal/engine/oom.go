package engine

import (
	"slices"

	"github.com/croftproject/croft/api"
)

// unreserved is the oom_score_adj of guests that may use more than is reserved for them. The kernel adds so many
// thousandths of the memory that ran out to the size of a process, and ends the greatest (proc_pid_oom_score_adj(5)).
const unreserved = 900

// OOMScore is the oom_score_adj of a server's processes: where the servers together run out of memory, one that was
// promised all that it uses is not ended for what others were not. One with containers of its own has none: their engine
// sets 0, which the kernel refuses to a process that was given more.
func OOMScore(s *api.ServerSpec) int {
	nesting := s.Model == api.ModelOS && slices.ContainsFunc(s.Grants, func(g api.Grant) bool { return g.Kind == api.GrantNesting })
	if s.Memory.HugePages || s.Memory.Reservation >= s.Memory.Limit || nesting {
		return 0
	}
	return unreserved
}
