package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// adoptAll takes over what an earlier keeper left: the ends that it recorded, and the processes that still live. Those
// are no children of this keeper, so how they end can't be learnt, only when.
func (k *keeper) adoptAll() error {
	err := k.records.load("exits", func(id string, content []byte) {
		p := &process{started: make(chan struct{})}
		close(p.started)
		if err := json.Unmarshal(content, &p.record.Status); err != nil || p.record.Status.Ended.IsZero() {
			k.log.Warn("broken record of an end", "id", id, "error", err)
			p.record.Status = lost(id)
		}
		k.procs[id] = p
	})
	if err != nil {
		return err
	}
	return k.records.load("run", func(id string, content []byte) {
		p := &process{started: make(chan struct{})}
		close(p.started)
		err := json.Unmarshal(content, &p.record)
		if done := k.procs[id]; done != nil {
			remove(k.records.path("run", id)) // its end was recorded last
			return
		}
		k.procs[id] = p
		p.spec = p.record.Spec
		if err == nil {
			err = k.adopt(p)
		}
		if err != nil {
			k.log.Warn("process of an earlier keeper is lost", "id", id, "reason", err)
			if p.record.Status.ID == "" {
				p.record.Status = lost(id)
			}
			k.ended(p, -1, 0)
		}
	})
}

// lost is the status of a process of which no more is known.
func lost(id string) Status { return Status{ID: id, Ended: time.Now(), Code: -1} }

// adopt watches over a process that an earlier keeper started, if it is still the same one.
func (k *keeper) adopt(p *process) error {
	rec := p.record
	if rec.Boot != bootID() {
		return errors.New("the host was booted since")
	}
	fd, err := unix.PidfdOpen(rec.Status.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	// With the descriptor open, the pid can't come to mean another process between these two looks.
	st, err := readStat(rec.Status.PID)
	if err == nil && (st.start != rec.Start || st.state == 'Z') {
		err = fmt.Errorf("process %d has gone", rec.Status.PID)
	}
	if err != nil {
		pidfd.Close()
		return err
	}
	p.adopted = pidfd
	if err := k.recoverConsole(p); err != nil {
		k.log.Warn("console is lost", "id", p.spec.ID, "reason", err)
	}
	if err := k.recoverErrors(p); err != nil {
		k.log.Warn("standard error is lost", "id", p.spec.ID, "reason", err)
	}
	go k.guard("end of "+p.spec.ID, func() {
		awaitEnd(pidfd)
		k.ended(p, -1, 0)
	})
	return nil
}

// recoverConsole takes the console's other end from the process itself (pidfd_getfd(2)), which holds it for this.
func (k *keeper) recoverConsole(p *process) error {
	if p.record.ConsoleFD == 0 {
		return ErrNoConsole
	}
	take := takeTerminal
	if !p.spec.Terminal {
		take = takePipe
	}
	in, err := take(p.adopted, p.record.ConsoleFD)
	if err != nil {
		return err
	}
	var log *rollingLog
	if p.spec.Log != "" {
		if log, err = openLog(p.spec.Log, p.spec.LogLimit); err != nil {
			k.log.Warn("open console log", "id", p.spec.ID, "error", err)
			log = nil
		}
	}
	ready := p.spec.Ready
	if !p.record.Status.Ready.IsZero() {
		ready = ""
	}
	p.console = newConsole(in, p.spec.Terminal, log, ready, func(at time.Time) { k.ran(p, at) })
	go k.guard("console of "+p.spec.ID, p.console.run)
	return nil
}

// recoverErrors goes on with the file for standard error.
func (k *keeper) recoverErrors(p *process) error {
	if p.spec.Stderr == "" {
		return nil
	}
	r, err := takePipe(p.adopted, unix.Stderr)
	if err != nil {
		return err
	}
	log, err := openLog(p.spec.Stderr, StderrLimit)
	if err != nil {
		r.Close()
		return err
	}
	p.stderr = k.keepErrors(p.spec.ID, r, log)
	return nil
}

// awaitEnd waits until the process of a pidfd has ended (pidfd_open(2): then it is readable).
func awaitEnd(pidfd *os.File) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

func signalFD(pidfd *os.File, sig unix.Signal) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return ErrEnded
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return ErrEnded
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrEnded
	}
	return sent
}
