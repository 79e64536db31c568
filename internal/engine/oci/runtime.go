package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// runtime is the OCI runtime's command. Its command line is its stable interface, shared by runc, crun, youki and others.
type runtime struct {
	binary string
	root   string // directory of its state
}

// path is the absolute path of the command.
func (r runtime) path() (string, error) {
	path, err := exec.LookPath(r.binary)
	if err != nil {
		return "", fmt.Errorf("OCI runtime: %w", err)
	}
	return filepath.Abs(path)
}

// known tells whether the runtime has state of a container.
func (r runtime) known(id string) bool {
	_, err := os.Lstat(filepath.Join(r.root, id))
	return err == nil
}

// do runs one of its commands to the end. The error is what the runtime said.
func (r runtime) do(ctx context.Context, args ...string) error {
	path, err := r.path()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--root", r.root}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s %s: %w%s", filepath.Base(path), args[0], err, because(lastMessage(said.Bytes())))
	}
	return nil
}

// remove forgets a container, whatever its state. One that is unknown is no error.
func (r runtime) remove(ctx context.Context, id string) error {
	if !r.known(id) {
		return nil
	}
	if err := r.do(ctx, "delete", "--force", id); err != nil {
		return err
	}
	// An invocation that was killed early has left a directory that holds no container.
	if err := os.RemoveAll(filepath.Join(r.root, id)); err != nil {
		return fmt.Errorf("remove the runtime's state: %w", err)
	}
	return nil
}

// lastMessage is the runtime's last complaint, from its log in JSON or text form (logrus).
func lastMessage(log []byte) string {
	var last string
	for line := range bytes.Lines(log) {
		text := strings.TrimSpace(string(line))
		if text == "" {
			continue
		}
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(text), &entry) == nil && entry.Msg != "" {
			if entry.Level == "error" || entry.Level == "fatal" {
				last = entry.Msg
			}
			continue
		}
		if _, msg, ok := strings.Cut(text, "msg="); ok {
			text = msg
			if strings.HasPrefix(msg, `"`) {
				_ = json.Unmarshal([]byte(msg), &text)
			}
		}
		last = text
	}
	return last
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}
