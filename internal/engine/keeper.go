package engine

import (
	"context"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/internal/keeper"
)

// Keeper is what engines use of the keeper's client: it starts a guest's process, which outlives the daemon, and tells
// how it ended. *keeper.Client is one.
//
// A guest's process has the machine's ID as its ID in the keeper. So whoever knows a server can attach to its console
// and read its times without asking the engine.
type Keeper interface {
	// Start starts a process; where one with the ID is known, running or ended, it starts nothing and returns that one.
	Start(ctx context.Context, s keeper.Spec) (keeper.Status, error)
	// Get tells what is known of a process; keeper.ErrUnknown where nothing is.
	Get(ctx context.Context, id string) (keeper.Status, error)
	// Done is closed when the process has ended; then Get tells how.
	Done(id string) <-chan struct{}
	// Signal sends a signal to the process.
	Signal(ctx context.Context, id string, sig unix.Signal) error
	// Forget removes what is remembered of an ended process. Unknown IDs are no error.
	Forget(ctx context.Context, id string) error
}

// ConsoleLog is the path of the log that the keeper keeps of a guest's console; the same for every engine.
func ConsoleLog(m *Machine) string { return filepath.Join(m.Dir, "console.log") }

// ConsoleLogLimit is the greatest size of a console log, in bytes, before it is rotated.
const ConsoleLogLimit = 1 << 20
