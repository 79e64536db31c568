package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that the keeper started or adopted:
//
//	starting ──▶ running ──▶ ended ──forget──▶ (nothing)
//	    └── failed: (nothing)
type process struct {
	spec    Spec
	started chan struct{} // closed when it runs, or has failed to
	failed  error         // set before started is closed

	// Owned by keeper.mu from here on.
	record  record
	console *console // nil: none
	stderr  *console // what takes standard error apart; nil: nothing
	adopted *os.File // pidfd of a process that is no child of this keeper
}

const idMax = 200

func (s Spec) check() error {
	switch {
	case s.ID == "" || len(s.ID) > idMax:
		return fmt.Errorf("id %q: 1 to %d bytes are needed", s.ID, idMax)
	case len(s.Args) == 0 || !filepath.IsAbs(s.Args[0]):
		return fmt.Errorf("start %s: the program must be an absolute path", s.ID)
	case s.PIDFile == "" && s.ConsoleSocket != "":
		return fmt.Errorf("start %s: a console socket is for a command that detaches", s.ID)
	case s.PIDFile != "" && (s.Terminal || s.Stderr != ""):
		return fmt.Errorf("start %s: a command that detaches takes no terminal and no file for errors", s.ID)
	}
	return nil
}

// start starts a process, or returns the one that has the ID, waiting for a start that is under way.
func (k *keeper) start(spec Spec, timeout time.Duration) (Status, error) {
	if err := spec.check(); err != nil {
		return Status{}, err
	}
	k.mu.Lock()
	if k.closing {
		k.mu.Unlock()
		return Status{}, errors.New("keeper is shutting down")
	}
	if p, ok := k.procs[spec.ID]; ok {
		k.mu.Unlock()
		return k.settled(p)
	}
	p := &process{spec: spec, started: make(chan struct{})}
	k.procs[spec.ID] = p
	k.mu.Unlock()

	err := k.protect("start "+spec.ID, func() error { return k.launch(p, timeout) })
	if err != nil {
		p.failed = fmt.Errorf("start %s: %w", spec.ID, err)
		k.mu.Lock()
		delete(k.procs, spec.ID)
		k.mu.Unlock()
	}
	close(p.started)
	return k.settled(p)
}

// settled is a process' status once its start is over.
func (k *keeper) settled(p *process) (Status, error) {
	<-p.started
	if p.failed != nil {
		return Status{}, p.failed
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return p.record.Status, nil
}

// find returns a process that is past its start.
func (k *keeper) find(id string) (*process, error) {
	k.mu.Lock()
	p, ok := k.procs[id]
	k.mu.Unlock()
	if ok {
		<-p.started
		ok = p.failed == nil
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", id, ErrUnknown)
	}
	return p, nil
}

func (k *keeper) get(id string) (Status, error) {
	p, err := k.find(id)
	if err != nil {
		return Status{}, err
	}
	return k.settled(p)
}

// list returns what is past its start.
func (k *keeper) list() []Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Status, 0, len(k.procs))
	for _, p := range k.procs {
		if p.record.Status.ID != "" {
			all = append(all, p.record.Status)
		}
	}
	return all
}

func (k *keeper) signal(id string, sig unix.Signal) error {
	p, err := k.find(id)
	if err != nil {
		return err
	}
	k.mu.Lock()
	status, adopted := p.record.Status, p.adopted
	k.mu.Unlock()
	switch {
	case !status.Ended.IsZero():
		err = ErrEnded
	case adopted != nil:
		err = signalFD(adopted, sig)
	default:
		err = k.reaper.signal(status.PID, sig)
	}
	if err != nil {
		return fmt.Errorf("send %s to %s: %w", unix.SignalName(sig), id, err)
	}
	return nil
}

func (k *keeper) forget(id string) error {
	p, err := k.find(id)
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p.record.Status.Ended.IsZero() {
		return fmt.Errorf("forget %s: %w", id, ErrRunning)
	}
	if k.procs[id] != p {
		return nil // another has forgotten it
	}
	delete(k.procs, id)
	return k.records.forget(id)
}

// ran is called when a process' output shows that it is ready.
func (k *keeper) ran(p *process, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &p.record.Status
	s.Ready = at
	if s.ID == "" || !s.Ended.IsZero() {
		return // the start, or the end, writes it
	}
	if err := k.records.running(p.record); err != nil {
		k.log.Error("record readiness", "id", p.spec.ID, "error", err)
	}
	k.announce(*s)
}

// ended is called when a process has ended. Its console is complete and its end recorded before anyone learns of it.
func (k *keeper) ended(p *process, code, signal int) {
	at := time.Now()
	for _, c := range []*console{p.console, p.stderr} {
		if c != nil {
			c.finish()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &p.record.Status
	s.Ended, s.Code, s.Signal = at, code, signal
	if err := k.records.ended(*s); err != nil {
		k.log.Error("record end", "id", p.spec.ID, "error", err)
	}
	if p.adopted != nil {
		p.adopted.Close()
		p.adopted = nil
	}
	k.announce(*s)
	if k.cut != nil && k.shut() == nil {
		k.cut()
	}
}

// outcome reads how a process ended: its exit code or 128 plus the signal, as a shell counts.
func outcome(w unix.WaitStatus) (code, signal int) {
	if w.Signaled() {
		return 128 + int(w.Signal()), int(w.Signal())
	}
	return w.ExitStatus(), 0
}

// attach finds the console of a process.
func (k *keeper) attach(id string) (*console, error) {
	p, err := k.find(id)
	if err != nil {
		return nil, err
	}
	if p.console == nil {
		return nil, fmt.Errorf("attach to %s: %w", id, ErrNoConsole)
	}
	return p.console, nil
}

// shutdown ends the keeper where it holds no process.
func (k *keeper) shutdown() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.shut()
}

// shut is shutdown with keeper.mu held.
func (k *keeper) shut() error {
	for id, p := range k.procs {
		if p.record.Status.Ended.IsZero() {
			return fmt.Errorf("shut down: %s: %w", id, ErrRunning)
		}
	}
	k.closing = true
	return nil
}
