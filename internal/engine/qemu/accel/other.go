//go:build !amd64

package accel

import (
	"fmt"
	"runtime"
	"time"
)

func runTestGuest(string, time.Duration) (time.Duration, error) {
	return 0, fmt.Errorf("%w: the test guest is written for amd64, not %s", errDevice, runtime.GOARCH)
}

func measureTSC() int64 { return 0 }
