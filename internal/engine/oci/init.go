package oci

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// powerOff is the signal that asks a guest's first process to end.
type powerOff unix.Signal

const (
	// systemd(1), SIGNALS: SIGRTMIN+3 halts; SIGRTMIN is 34 in the C library's count.
	offSystemd powerOff = 34 + 3
	// busybox init: SIGUSR2 powers off, SIGUSR1 halts, SIGTERM reboots.
	offBusybox = powerOff(unix.SIGUSR2)
	// init(8) of sysvinit, OpenRC and others: power failure.
	offOther = powerOff(unix.SIGPWR)
	// An application.
	offApplication = powerOff(unix.SIGTERM)
)

// inits are where a system's init is looked for, in this order.
var inits = []string{"/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/init", "/bin/init"}

// findInit finds the guest's init and how it is asked to power off.
func (t *tree) findInit() (path string, off powerOff, err error) {
	for _, path := range inits {
		place, err := t.find(path)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue
			}
			return "", 0, fmt.Errorf("look for init: %w", err)
		}
		defer place.Close()
		info, err := place.Stat()
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		name := filepath.Base(t.real(place))
		switch {
		case name == "systemd":
			return path, offSystemd, nil
		case strings.HasPrefix(name, "busybox"):
			return path, offBusybox, nil
		}
		head, err := readPlace(place, initLimit)
		if err != nil {
			return "", 0, fmt.Errorf("read init: %w", err)
		}
		return path, initKind(head), nil
	}
	return "", 0, fmt.Errorf("the image has no init (%s) and names no application", strings.Join(inits, ", "))
}

// initLimit is how much of an init is searched for what it is, in bytes.
const initLimit = 4 << 20

// initKind tells an init that is a copy or hard link under another name by what its file holds.
func initKind(file []byte) powerOff {
	switch {
	case bytes.HasPrefix(file, []byte("#!")):
		return offOther
	case bytes.Contains(file, []byte("BusyBox v")):
		return offBusybox
	case bytes.Contains(file, []byte("systemd.unit=")):
		return offSystemd
	}
	return offOther
}
