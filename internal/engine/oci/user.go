package oci

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/croftproject/croft/internal/engine"
)

// accounts are a guest's users and groups (passwd(5), group(5)).
type accounts struct{ passwd, group []byte }

// accountsLimit is the most that is read of a guest's passwd or group file, in bytes.
const accountsLimit = 1 << 20

// accounts reads the guest's files; one that is missing is empty, as in an image without users.
func (t *tree) accounts() accounts {
	passwd, _ := t.read("/etc/passwd", accountsLimit)
	group, _ := t.read("/etc/group", accountsLimit)
	return accounts{passwd, group}
}

// checkAccounts refuses a guest whose files of users and groups are no files: the runtime opens them within the guest, and
// would wait for whoever writes to a FIFO.
func (t *tree) checkAccounts() error {
	for _, name := range []string{"/etc/passwd", "/etc/group"} {
		place, err := t.find(name)
		if err != nil {
			continue // nor will the runtime find it
		}
		info, err := place.Stat()
		place.Close()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %s in the guest is no regular file; put it right in the server's root", engine.ErrUnsupported, name)
		}
	}
	return nil
}

// account is whom a process runs as.
type account struct {
	specs.User
	Name, Home string
}

// resolve finds a user given as "user", "user:group", "uid" or "uid:gid" (OCI image-spec, config, User). Empty is root.
// A number needs no entry. With a group given, there are no supplementary groups.
func (a accounts) resolve(who string, ids uint32) (account, error) {
	user, group, grouped := strings.Cut(who, ":")
	if user == "" {
		user = "0"
	}
	found, err := a.user(user)
	if err != nil {
		return account{}, err
	}
	if grouped && group != "" {
		if found.GID, err = a.gid(group); err != nil {
			return account{}, err
		}
	} else if found.Name != "" {
		found.AdditionalGids = a.memberships(found.Name, found.GID, ids)
	}
	if found.UID >= ids || found.GID >= ids {
		return account{}, fmt.Errorf("user %q is beyond the guest's %d ids", who, ids)
	}
	return found, nil
}

func (a accounts) user(user string) (account, error) {
	number, isNumber := parseID(user)
	for fields := range entries(a.passwd, 7) {
		uid, ok := parseID(fields[2])
		gid, gok := parseID(fields[3])
		if ok && gok && (fields[0] == user || isNumber && uid == number) {
			return account{User: specs.User{UID: uid, GID: gid}, Name: fields[0], Home: fields[5]}, nil
		}
	}
	if !isNumber {
		return account{}, fmt.Errorf("the guest has no user %q", user)
	}
	return account{User: specs.User{UID: number}}, nil
}

func (a accounts) gid(group string) (uint32, error) {
	if number, ok := parseID(group); ok {
		return number, nil
	}
	for fields := range entries(a.group, 4) {
		if gid, ok := parseID(fields[2]); ok && fields[0] == group {
			return gid, nil
		}
	}
	return 0, fmt.Errorf("the guest has no group %q", group)
}

func (a accounts) memberships(name string, primary, ids uint32) []uint32 {
	var gids []uint32
	for fields := range entries(a.group, 4) {
		gid, ok := parseID(fields[2])
		if ok && gid != primary && gid < ids && slices.Contains(strings.Split(fields[3], ","), name) {
			gids = append(gids, gid)
		}
	}
	return gids
}

// entries yields the lines that have at least want fields.
func entries(file []byte, want int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(file) {
			fields := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
			if len(fields) >= want && !yield(fields) {
				return
			}
		}
	}
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}
