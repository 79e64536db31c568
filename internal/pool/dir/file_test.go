package dir

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/pool"
)

const guest = 700000

func disk(t *testing.T, format string) (*Pool, pool.Spec, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("ownership of volumes needs root")
	}
	place := t.TempDir()
	if err := os.Chmod(filepath.Dir(place), 0o711); err != nil {
		t.Fatal(err)
	}
	p := open(t, place)
	s := pool.Spec{ID: "disk", Kind: pool.File, Size: api.MiB, Format: format, Owner: guest}
	if err := p.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return p, s, p.path(s.ID, diskName(format))
}

func secret(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOnlyThePlainFileIsADisk(t *testing.T) {
	for name, put := range map[string]func(target, disk string) error{
		"symbolic link": os.Symlink, "second name": os.Link,
		"directory": func(_, disk string) error { return os.Mkdir(disk, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			p, s, disk := disk(t, "raw")
			target := secret(t)
			if err := os.Remove(disk); err != nil {
				t.Fatal(err)
			}
			if err := put(target, disk); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Open(t.Context(), s); err == nil {
				t.Error("it was opened")
			}
			if err := p.Grow(t.Context(), s.ID, 2*api.MiB); err == nil {
				t.Error("it was grown")
			}
			owner, err := exec.Command("stat", "-c", "%u %s", target).Output()
			if err != nil || string(owner) != "0 512\n" {
				t.Errorf("owner and size of its target: %s, %v", owner, err)
			}
		})
	}
}

// What a guest made of its disk is read with no more than the guest's own rights.
func TestGrowReadsNothingOfTheHosts(t *testing.T) {
	p, s, disk := disk(t, "qcow2")
	out, err := exec.Command("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", secret(t), "-F", "raw", disk).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := p.Grow(t.Context(), s.ID, 2*api.MiB); err == nil {
		t.Error("the disk was grown over a backing file that only root reads")
	}
}
