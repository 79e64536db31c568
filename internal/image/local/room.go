package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// room is what images may take of the store's file system: what is free, less what is kept for the host.
type room struct{ free, reserve api.Bytes }

func (r room) left() api.Bytes { return max(0, r.free-r.reserve) }

// lacks says that an image takes more than there is: need bytes, or more than what is left where need is 0.
func (r room) lacks(need api.Bytes) error { return shortage{r, need} }

// shortage says that an image takes what is kept for the host. It is a kind of ENOSPC.
type shortage struct {
	room
	need api.Bytes
}

func (e shortage) Error() string {
	what := "is short of " + (e.need + e.reserve - e.free).Approx()
	if e.need == 0 && e.left() > 0 {
		what = "has " + e.left().Approx() + " for the image, which takes more"
	}
	return fmt.Sprintf("the image store's file system %s: %s are free there, and %s are kept for the host; free some, or lower the host's reserve.disk",
		what, e.free.Approx(), e.reserve.Approx())
}

func (shortage) Unwrap() error { return unix.ENOSPC }

// room looks at the file system. Where nothing is left, that is an error.
func (s *Store) room() (room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &st); err != nil {
		return room{}, fmt.Errorf("look at image store: %w", err)
	}
	r := room{free: api.Bytes(int64(st.Bavail) * st.Bsize)}
	if s.o.Reserve != nil {
		r.reserve = s.o.Reserve()
	}
	if r.left() == 0 {
		return r, r.lacks(0)
	}
	return r, nil
}

// roomEvery is how often the room is looked at: the kernel tells nobody of it.
const roomEvery = 100 * time.Millisecond

// guarded returns a context that ends, with a shortage as its cause, once there is no room: what makes an image takes
// it in many ways, and others take it too. end ends the watch.
func (s *Store) guarded(ctx context.Context) (guarded context.Context, end func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(roomEvery)
		defer tick.Stop()
		for {
			if _, err := s.room(); err != nil {
				cancel(err)
			}
			select {
			case <-tick.C:
			case <-guarded.Done():
				return
			}
		}
	}()
	return guarded, func() {
		cancel(nil)
		<-done
	}
}

// reason is why work under a guarded context failed: a shortage, where that ended it, in the place of what followed.
func reason(ctx context.Context, err error) error {
	var short shortage
	switch {
	case err == nil:
		return nil
	case errors.As(context.Cause(ctx), &short):
		return short
	case errors.As(err, &short):
		return err
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("the image store's file system is full: %w", err)
	}
	return err
}
