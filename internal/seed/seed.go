// Package seed writes a server's first-boot configuration in cloud-init's NoCloud form: as a disk labelled "cidata", or
// into the guest's tree. https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
package seed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// Seed is the configuration of one server.
type Seed struct {
	Hostname string
	MetaData string
	UserData string
	Network  string // network-config, version 2: DHCP on every port
	Resolv   string // resolv.conf(5) of a guest whose network the host sets up; empty: the guest writes it
}

// Render makes the seed of a server whose ports have these MAC addresses. Guest may be nil: then it holds the host name
// only.
func Render(m api.Meta, g *api.Guest, macs []string) Seed {
	if g == nil {
		g = &api.Guest{}
	}
	s := Seed{Hostname: g.Hostname, UserData: g.UserData, Network: networkConfig(macs)}
	if s.Hostname == "" {
		s.Hostname = m.Name
	}
	s.MetaData = document(map[string]any{"instance-id": m.ID, "local-hostname": s.Hostname})
	if s.UserData == "" {
		s.UserData = "#cloud-config\n" + document(cloudConfig(s.Hostname, g))
	}
	return s
}

// networkConfig has every port configured by DHCP. Ports are told by their MAC addresses: what a device is called
// differs from engine to engine.
func networkConfig(macs []string) string {
	ethernets := map[string]any{}
	for i, mac := range macs {
		ethernets[fmt.Sprintf("port%d", i)] = map[string]any{"match": map[string]any{"macaddress": mac}, "dhcp4": true}
	}
	return document(map[string]any{"version": 2, "ethernets": ethernets})
}

func cloudConfig(hostname string, g *api.Guest) map[string]any {
	out := map[string]any{"hostname": hostname, "preserve_hostname": false}
	if len(g.SSHKeys) > 0 {
		out["ssh_authorized_keys"] = g.SSHKeys
	}
	users := []any{"default"}
	for _, u := range g.Users {
		user := map[string]any{"name": u.Name, "shell": "/bin/bash", "lock_passwd": u.PasswordHash == ""}
		if len(u.SSHKeys) > 0 {
			user["ssh_authorized_keys"] = u.SSHKeys
		}
		if u.PasswordHash != "" {
			user["passwd"] = u.PasswordHash
		}
		if u.Sudo {
			user["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
		}
		users = append(users, user)
	}
	if len(g.Users) > 0 {
		out["users"] = users
	}
	return out
}

func document(v any) string {
	data, err := yaml.Marshal(v)
	if err != nil { // maps of strings, lists and booleans always encode
		panic(fmt.Sprintf("encode seed: %v", err))
	}
	return string(data)
}

func (s Seed) files() map[string]string {
	return map[string]string{"meta-data": s.MetaData, "user-data": s.UserData, "network-config": s.Network}
}

// isoSize is room for the largest user-data that the API takes (1 MiB), and the file system.
const isoSize = 4 << 20

// volumeLabel is what NoCloud looks for, filled with spaces as ECMA-119, 8.4.8 has it.
const volumeLabel = "cidata                          "

// WriteISO writes the seed as an ISO 9660 image with the label "cidata", owned by owner. It replaces one that is there.
func (s Seed) WriteISO(path string, owner int) error {
	// It holds secrets, and is its owner's alone: what it is made from lies where only root looks, and not for longer.
	making := path + ".making"
	if err := os.RemoveAll(making); err != nil {
		return err
	}
	work, files := filepath.Join(making, "iso"), filepath.Join(making, "files")
	if err := errors.Join(os.Mkdir(making, 0o700), os.Mkdir(files, 0o700)); err != nil {
		return fmt.Errorf("make seed disk: %w", err)
	}
	defer os.RemoveAll(making)
	if err := s.makeISO(work, files); err != nil {
		return err
	}
	if err := os.Chmod(work, 0o400); err != nil {
		return err
	}
	if err := os.Chown(work, owner, owner); err != nil {
		return err
	}
	return os.Rename(work, path)
}

// makeISO makes the image, with an empty directory to collect its files in.
func (s Seed) makeISO(work, files string) (err error) {
	d, err := diskfs.Create(work, isoSize, diskfs.SectorSizeDefault)
	if err != nil {
		return fmt.Errorf("make seed disk: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	d.LogicalBlocksize = 2048
	fs, err := d.CreateFilesystem(disk.FilesystemSpec{FSType: filesystem.TypeISO9660, VolumeLabel: "cidata", WorkDir: files})
	if err != nil {
		return fmt.Errorf("make seed disk: %w", err)
	}
	defer fs.Close()
	for name, content := range s.files() {
		f, err := fs.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return fmt.Errorf("write %s to the seed disk: %w", name, err)
		}
		if _, err := f.Write([]byte(content)); err != nil {
			return fmt.Errorf("write %s to the seed disk: %w", name, err)
		}
	}
	iso, ok := fs.(*iso9660.FileSystem)
	if !ok {
		return fmt.Errorf("seed disk is of type %T", fs)
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: volumeLabel}); err != nil {
		return fmt.Errorf("finish the seed disk: %w", err)
	}
	return nil
}

// WriteTree writes the seed into a guest's root tree, which the guest may have filled with anything: no link in it leads
// outside. owner is the host id of the guest's root. The host name is written for guests without cloud-init too.
func (s Seed) WriteTree(tree string, owner int, cloudInit bool) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	files := map[string]string{"etc/hostname": s.Hostname + "\n"}
	if cloudInit {
		for name, content := range s.files() {
			files["var/lib/cloud/seed/nocloud/"+name] = content
		}
	}
	// A link leads to what a resolver of the guest's own keeps.
	if info, err := root.Lstat("etc/resolv.conf"); s.Resolv != "" && (err != nil || info.Mode().IsRegular()) {
		files["etc/resolv.conf"] = s.Resolv
	}
	for name, content := range files {
		if err := writeIn(root, name, content, owner); err != nil {
			return fmt.Errorf("write /%s of the guest: %w", name, err)
		}
	}
	return nil
}

// holds tells whether a file below root has this content. The guest decides what is there: anything but a small regular
// file is not even opened for long.
func holds(root *os.Root, name, content string) bool {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(content)) {
		return false
	}
	now, err := io.ReadAll(io.LimitReader(f, int64(len(content))+1))
	return err == nil && string(now) == content
}

// writeIn replaces a file below root, making the directories above it. A file that is right already is left.
func writeIn(root *os.Root, name, content string, owner int) error {
	if holds(root, name, content) {
		return nil
	}
	for i, c := range name {
		if c != '/' {
			continue
		}
		dir := name[:i]
		if err := root.Mkdir(dir, 0o755); err == nil {
			err = root.Lchown(dir, owner, owner)
			if err != nil {
				return err
			}
		} else if !os.IsExist(err) {
			return err
		}
	}
	work := filepath.Join(filepath.Dir(name), ".croft-"+filepath.Base(name))
	mode := os.FileMode(0o644)
	if strings.HasSuffix(name, "user-data") { // it can hold secrets
		mode = 0o600
	}
	if err := root.RemoveAll(work); err != nil {
		return err
	}
	if err := root.WriteFile(work, []byte(content), mode); err != nil {
		return err
	}
	if err := root.Lchown(work, owner, owner); err != nil {
		return err
	}
	return root.Rename(work, name)
}
