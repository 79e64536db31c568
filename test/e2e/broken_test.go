package e2e

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// TestMissing runs a daemon that finds neither runc nor QEMU: their models are refused with the reason, the other works.
func TestMissing(t *testing.T) {
	bin := t.TempDir()
	for _, dir := range []string{"/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"} {
		programs, _ := filepath.Glob(dir + "/*")
		for _, p := range programs {
			if base := filepath.Base(p); base != "runc" && !strings.HasPrefix(base, "qemu-system") {
				os.Symlink(p, filepath.Join(bin, base)) // the same name may be there already
			}
		}
	}
	w := world.New(t, world.Options{Env: []string{"PATH=" + bin}})
	w.BuildMicro(t)
	host, err := w.Hosts().Get(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range host.Status.Engines {
		if e.Available != (e.Name == "uml") || !e.Available && e.Reason == "" {
			t.Errorf("engine %+v", e)
		}
	}
	for _, model := range []api.Model{api.ModelOS, api.ModelFull} {
		_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "missing", Spec: small(model, "")})
		wantCode(t, err, api.CodeUnsupported, "")
	}
	if s := w.Run(t, "there", small(api.ModelPara, "")); s.Status.Engine != "uml" {
		t.Errorf("model para runs on %s", s.Status.Engine)
	}
	w.Remove(t, "there")
}

// TestBroken breaks what servers are made from and where they are kept. Guests go on, and what is mended works again.
func TestBroken(t *testing.T) {
	w := world.New(t, world.Options{Base: smallDisk(t)})
	// The disk is smaller than what is kept for a host.
	if _, err := w.Hosts().Patch(t.Context(), "test", map[string]any{"spec": map[string]any{"reserve": map[string]any{"disk": "64MiB"}}}, 0); err != nil {
		t.Fatal(err)
	}
	w.BuildMicro(t)
	running := w.Run(t, "running", small(api.ModelOS, "runc"))
	t.Run("image", func(t *testing.T) { testDamaged(t, w) })
	t.Run("full", func(t *testing.T) {
		for _, name := range []string{"large", "still"} {
			w.Run(t, name, small(api.ModelOS, "runc"))
			w.Output(t, name, "sh", "-c", "head -c 32m /dev/urandom > /root/large; sync")
		}
		power(t, w, "still", api.PowerStop)
		w.Wait(t, "still", "stopped", func(s *api.Server) bool { return s.Status.Phase == api.PhaseStopped })
		ballast := filepath.Join(w.StateDir, "ballast")
		fill(t, ballast)
		before := len(w.Log())
		_, err := w.Servers(world.Tenant).Create(t.Context(), client.Create[api.ServerSpec]{Name: "late", Spec: small(api.ModelOS, "runc")})
		if err == nil {
			s := w.Wait(t, "late", "told why", func(s *api.Server) bool { return s.Status.Phase == api.PhaseBackoff && s.Status.Message != "" })
			if !strings.Contains(s.Status.Message, "space") {
				t.Errorf("a full disk is told as %q", s.Status.Message)
			}
		} else if api.CodeOf(err) != api.CodeCapacity { // as the host has found out by itself, or the store can't write
			wantCode(t, err, api.CodeUnavailable, "")
		}
		steady(t, w, running)
		w.Kill(t)
		w.Start(t) // an upgrade, or what else ends a daemon
		testDeleteFull(t, w)
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.Died():
			t.Errorf("the daemon ended:\n%s", w.Log()[before:])
			w.Kill(t)
			w.Start(t)
		default:
		}
		if err != nil {
			waitRoom(t, w)
			w.Create(t, "late", small(api.ModelOS, "runc"))
		}
		w.Ready(t, "late")
		w.Remove(t, "late")
	})
	t.Run("stopped store", func(t *testing.T) { testFrozen(t, w, running) })
	w.Remove(t, "running")
}

// waitRoom waits until the host says that it has room for a small disk.
func waitRoom(t *testing.T, w *world.World) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), world.Patience)
	defer cancel()
	for c, err := range w.Hosts().Watch(ctx, client.ListOptions{}, 0) {
		if err != nil {
			t.Fatalf("wait for room: %v", err)
		}
		if s := c.Object.Status; s.Allocatable.Disk-s.Allocated.Disk >= small(api.ModelOS, "").Disk.Size {
			return
		}
	}
	t.Fatal("the host never had room")
}

// testDeleteFull deletes servers on the full disk, one that runs and one that doesn't, which gives their space back.
func testDeleteFull(t *testing.T, w *world.World) {
	t.Helper()
	for _, name := range []string{"large", "still"} {
		before := free(t, w.StateDir)
		w.Remove(t, name)
		if gained := free(t, w.StateDir) - before; gained < 24<<20 {
			t.Errorf("the deletion of %s gave %d bytes back", name, gained)
		}
		fill(t, filepath.Join(w.StateDir, "ballast"))
	}
}

// free is the space that is left for root where path is.
func free(t *testing.T, path string) int64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bfree) * fs.Bsize
}

// testFrozen has the disk below the store stop answering: writes are refused, reads and guests go on, and when the disk
// answers again so does the store.
func testFrozen(t *testing.T, w *world.World, running *api.Server) {
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW (linux/fs.h)
	disk, err := os.Open(filepath.Dir(filepath.Dir(w.StateDir)))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := unix.IoctlSetInt(int(disk.Fd()), freeze, 0); err != nil {
		t.Skipf("the file system can't be frozen: %v", err)
	}
	frozen := true
	release := func() {
		if frozen {
			frozen = false
			if err := unix.IoctlSetInt(int(disk.Fd()), thaw, 0); err != nil {
				t.Errorf("thaw: %v", err)
			}
		}
	}
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), world.Patience/2)
	defer cancel()
	_, err = w.Servers(world.Tenant).Create(ctx, client.Create[api.ServerSpec]{Name: "never", Spec: small(api.ModelOS, "runc")})
	wantCode(t, err, api.CodeUnavailable, "")
	if s := w.Get(t, running.Name); s.Status.Phase != api.PhaseRunning {
		t.Errorf("the server is %s", s.Status.Phase)
	}
	if err := unix.Kill(pids(t, w, running.ID)[0], 0); err != nil {
		t.Errorf("the guest: %v", err)
	}
	release()
	steady(t, w, running)
	w.Create(t, "after", small(api.ModelOS, "runc"))
	w.Ready(t, "after")
	w.Remove(t, "after")
	if err := w.Delete(t.Context(), world.Tenant, "never"); err != nil { // it may have been written in the end
		t.Error(err)
	}
}

// steady checks that a guest runs on.
func steady(t *testing.T, w *world.World, s *api.Server) {
	t.Helper()
	if err := unix.Kill(pids(t, w, s.ID)[0], 0); err != nil {
		t.Errorf("the guest of %s: %v", s.Name, err)
	}
	if got := w.Output(t, s.Name, "hostname"); got != s.Name+"\n" {
		t.Errorf("%s says %q", s.Name, got)
	}
}

// testDamaged takes parts of an image away from under a new server.
func testDamaged(t *testing.T, w *world.World) {
	kernels, _ := filepath.Glob(filepath.Join(w.StateDir, "images", "*", "rootfs.ext4"))
	if len(kernels) != 1 {
		t.Fatalf("parts of the image: %v", kernels)
	}
	away := kernels[0] + ".away"
	if err := os.Rename(kernels[0], away); err != nil {
		t.Fatal(err)
	}
	w.Create(t, "damaged", small(api.ModelPara, "uml"))
	s := w.Wait(t, "damaged", "told why", func(s *api.Server) bool {
		return (s.Status.Phase == api.PhaseFailed || s.Status.Phase == api.PhaseBackoff) && s.Status.Message != ""
	})
	if !strings.Contains(s.Status.Message, "image") {
		t.Errorf("a damaged image is told as %q", s.Status.Message)
	}
	if err := os.Rename(away, kernels[0]); err != nil {
		t.Fatal(err)
	}
	power(t, w, "damaged", api.PowerStart)
	w.Ready(t, "damaged")
	w.Remove(t, "damaged")
}

// smallDisk is a file system of 2 GiB, mounted for the time of the test.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "croft-disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file, mount := filepath.Join(dir, "fs"), filepath.Join(dir, "m")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 2<<30), os.Mkdir(mount, 0o711), os.Chmod(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", file}, {"mount", "-o", "loop", file, mount}, {"chmod", "711", mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v: %s", err, out)
		}
	})
	return mount
}

// fill takes all the space that is left where path is.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []int64{64 << 20, 1 << 20, 4 << 10} {
		for err = nil; err == nil; at += piece {
			if err = unix.Fallocate(int(f.Fd()), 0, at, piece); err != nil {
				break
			}
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
