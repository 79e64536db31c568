package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// userspaceMark is what the image prints once its userspace is up.
const userspaceMark = "croft: ready"

// userspace compares the way from a request to a guest's userspace with the same command started bare: without the
// engine's user, confinement, control sockets and port. The command line, and what is loaded before the program, are
// those of a guest of ours, so that both have the same machine, kernel and arguments.
type userspace struct {
	row, engine string
	model       api.Model
	peer        string
	rounds      int
	// program is in the command line of the guest's process.
	program string
	// bare makes the peer's command line of ours; disk is a fresh copy of the image's disk.
	bare func(ours []string, disk string) []string
	// disk makes that copy.
	disk func(h *host, target string) error
}

func (u userspace) run(ctx context.Context, l *lab) ([]Row, error) {
	h, err := l.Host(ctx)
	if err != nil {
		return nil, err
	}
	var command, env []string
	var seen []time.Duration
	disk := filepath.Join(l.dir, "bare-"+u.engine)
	ours := func(ctx context.Context) (time.Duration, error) {
		got, err := h.Launch(ctx, "one", small(u.model, u.engine), ready)
		if err != nil {
			return 0, err
		}
		if command == nil {
			var pid int
			if pid, command, err = find(u.program, got.Server.ID); err != nil {
				return 0, err
			}
			if env, err = preloaded(pid, filepath.Join(l.dir, "preload-"+u.engine)); err != nil {
				return 0, err
			}
		}
		seen = append(seen, got.Ready-got.Reported)
		_, err = h.Delete(ctx, "one")
		return got.Reported, err
	}
	bare := func(ctx context.Context) (time.Duration, error) {
		if err := u.disk(h, disk); err != nil {
			return 0, err
		}
		return toUserspace(ctx, filepath.Base(l.dir)+"-bare", env, u.bare(command, disk))
	}
	times, err := turns(ctx, u.rounds, side{"ours", ours}, side{u.peer, bare})
	l.later(func() error { return dropGroup(filepath.Base(l.dir) + "-bare") })
	if err != nil {
		return nil, err
	}
	return []Row{NewRow(u.row, "s", median(times[0]), median(times[1]), u.peer, Times(1.1),
		fmt.Sprintf("from POST to the first sign of userspace: %s; bare: %s; a watch tells of it %.0f ms later", spread(times[0]), spread(times[1]), milliseconds(seen)))}, nil
}

// preloaded copies the library that a process has loaded before all others, and returns the variable that has a program
// load the copy; nothing where there is none. Without it bare UML does not boot on some processors.
func preloaded(pid int, target string) ([]string, error) {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, err
	}
	for _, v := range strings.Split(string(environ), "\x00") {
		fd, ok := strings.CutPrefix(v, "LD_PRELOAD=/proc/self/fd/")
		if !ok {
			continue
		}
		library, err := os.ReadFile(fmt.Sprintf("/proc/%d/fd/%s", pid, fd))
		if err != nil {
			return nil, err
		}
		return []string{"LD_PRELOAD=" + target}, os.WriteFile(target, library, 0o755)
	}
	return nil, nil
}

// toUserspace starts a command on a terminal, and returns when it has printed the mark. The command is in a control
// group, as ours is, so that the scheduler weighs both alike against what else the machine does.
func toUserspace(ctx context.Context, group string, env, args []string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	join, err := makeGroup(group)
	if err != nil {
		return 0, err
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = slices.Concat(os.Environ(), []string{"TMPDIR=/dev/shm"}, env)
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) } // UML is several processes
	began := time.Now()
	terminal, err := pty.Start(c)
	if err != nil {
		return 0, err
	}
	defer terminal.Close()
	if err := os.WriteFile(join, []byte(strconv.Itoa(c.Process.Pid)), 0); err != nil {
		return 0, err
	}
	took, said := time.Duration(0), ""
	for lines := bufio.NewScanner(terminal); lines.Scan(); {
		said += lines.Text() + "\n"
		if strings.Contains(lines.Text(), userspaceMark) {
			took = time.Since(began)
			break
		}
	}
	cancel()
	_ = c.Wait()
	if took == 0 {
		return 0, fmt.Errorf("%s ended without userspace: %s", args[0], said[max(0, len(said)-500):])
	}
	return took, nil
}

// groupDir is the directory of a control group of the processor's controller.
func groupDir(name string) string {
	if _, err := os.Stat("/sys/fs/cgroup/cpu"); err != nil { // v2
		return filepath.Join("/sys/fs/cgroup", name)
	}
	return filepath.Join("/sys/fs/cgroup/cpu", name)
}

// dropGroup removes a control group, once the last killed process has left it.
func dropGroup(name string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(groupDir(name))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// makeGroup makes a control group of the processor's controller, and returns the file to write a pid to.
func makeGroup(name string) (join string, err error) {
	dir := groupDir(name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return filepath.Join(dir, "cgroup.procs"), nil
}

func umlUserspace(ctx context.Context, l *lab) ([]Row, error) {
	return userspace{
		row: "uml/userspace", engine: "uml", model: api.ModelPara, peer: "linux.uml", rounds: 5, program: "linux.uml",
		disk: func(h *host, target string) error { return copyImage(h, "rootfs.ext4", target) },
		bare: func(ours []string, disk string) []string {
			var out []string
			dir := filepath.Dir(disk)
			for _, a := range ours {
				switch name, _, _ := strings.Cut(a, "="); {
				case name == "ubd0d":
					a = "ubd0d=" + disk
				case name == "uml_dir", name == "hostfs":
					a = name + "=" + dir
				case strings.HasPrefix(name, "vec"):
					continue
				}
				out = append(out, a)
			}
			return out
		},
	}.run(ctx, l)
}

func microvmUserspace(ctx context.Context, l *lab) ([]Row, error) {
	return userspace{
		row: "microvm/userspace", engine: "microvm", model: api.ModelPara, peer: "qemu microvm", rounds: 4, program: "qemu-system",
		disk: func(h *host, target string) error { return layer(h, "rootfs.ext4", target) }, bare: bareQEMU,
	}.run(ctx, l)
}

func qemuUserspace(ctx context.Context, l *lab) ([]Row, error) {
	return userspace{
		row: "qemu/userspace", engine: "qemu", model: api.ModelFull, peer: "qemu q35", rounds: 4, program: "qemu-system",
		disk: func(h *host, target string) error { return layer(h, "disk.raw", target) }, bare: bareQEMU,
	}.run(ctx, l)
}

// layer makes a disk above a file of the image, as the volumes of QEMU's servers are.
func layer(h *host, name, target string) error {
	base, err := h.imageFile(name)
	if err != nil {
		return err
	}
	_ = os.Remove(target)
	return exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", target).Run()
}

// bareQEMU drops from QEMU's command line what a server has besides its machine: the sandbox, the control sockets, the
// screen's socket, and the port, whose tap only the keeper can open.
func bareQEMU(ours []string, disk string) []string {
	out := ours[:1:1]
	for i := 1; i < len(ours); i++ {
		flag := ours[i]
		if i+1 == len(ours) || strings.HasPrefix(ours[i+1], "-") {
			out = append(out, flag)
			continue
		}
		i++
		value := ours[i]
		switch {
		case flag == "-sandbox", flag == "-mon", flag == "-netdev", flag == "-vnc",
			flag == "-chardev" && strings.Contains(value, "backend=socket"),
			flag == "-device" && strings.Contains(value, `"netdev"`):
			continue
		case flag == "-blockdev":
			value = withDisk(value, disk)
		}
		out = append(out, flag, value)
	}
	return append(out, "-display", "none")
}

// withDisk changes the file of a block device.
func withDisk(blockdev, disk string) string {
	before, after, ok := strings.Cut(blockdev, `"filename":"`)
	if !ok {
		return blockdev
	}
	_, after, _ = strings.Cut(after, `"`)
	return before + `"filename":"` + disk + `"` + after
}

// copyImage copies a file of the image sparsely.
func copyImage(h *host, name, target string) error {
	source, err := h.imageFile(name)
	if err != nil {
		return err
	}
	return exec.Command("cp", "--sparse=always", "--", source, target).Run()
}
