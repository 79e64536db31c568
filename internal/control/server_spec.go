package control

import (
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
)

// Limits of what a server may be. They are far beyond any machine, and keep sums within 63 bits.
const (
	maxCPUs     = 1024
	maxMemory   = 64 * api.TiB
	minMemory   = 8 * api.MiB
	maxDisk     = 1024 * api.TiB
	minDisk     = 1 * api.MiB
	maxPIDs     = 4 << 20 // Linux's own limit, PID_MAX_LIMIT
	maxUserData = 64 * api.KiB
)

// What a field that was left out becomes.
const (
	defaultMemory = 512 * api.MiB
	defaultDisk   = 10 * api.GiB
	defaultPIDs   = 4096
	perCPU        = 100 * api.MilliCPU(1) // entitlement of each virtual CPU
)

// fillIn gives every field that was left out its default. It returns the pointers of those that follow from others.
func fillIn(s *api.ServerSpec, minimum api.Bytes) (derived []string) {
	either(&s.Engine, api.EngineAuto)
	either(&s.State, api.StateRunning)
	either(&s.CPU.Count, 1)
	count := api.MilliCPU(max(0, min(s.CPU.Count, maxCPUs)))
	follows := func(pointer string, left bool) {
		if left {
			derived = append(derived, pointer)
		}
	}
	whole, entitled := count*api.CPU1, count*perCPU
	if s.CPU.Dedicated {
		entitled = whole
	} else if s.CPU.Cap > 0 {
		entitled = min(entitled, s.CPU.Cap)
	}
	follows("/spec/cpu/entitlement", either(&s.CPU.Entitlement, entitled))
	follows("/spec/cpu/cap", either(&s.CPU.Cap, whole))
	either(&s.Memory.Limit, defaultMemory)
	follows("/spec/memory/reservation", either(&s.Memory.Reservation, s.Memory.Limit))
	either(&s.PIDs, defaultPIDs)
	either(&s.Disk.Size, max(defaultDisk, minimum))
	either(&s.Firmware, api.FirmwareBIOS)
	either(&s.Devices, api.DevicesVirtio)
	either(&s.Autostart.Policy, api.AutostartLast)
	either(&s.Restart.Policy, api.RestartOnFailure)
	either(&s.StopTimeout, api.Duration(30*time.Second))
	return derived
}

// either gives a field that was left out a value, and tells whether it did.
func either[T comparable](field *T, value T) bool {
	var zero T
	if *field != zero {
		return false
	}
	*field = value
	return true
}

// forget takes derived fields out of a spec where they are as they were, so that they follow what they derive from.
func forget(s, old *api.ServerSpec, derived []string) {
	for _, pointer := range derived {
		switch {
		case pointer == "/spec/cpu/entitlement" && s.CPU.Entitlement == old.CPU.Entitlement:
			s.CPU.Entitlement = 0
		case pointer == "/spec/cpu/cap" && s.CPU.Cap == old.CPU.Cap:
			s.CPU.Cap = 0
		case pointer == "/spec/memory/reservation" && s.Memory.Reservation == old.Memory.Reservation:
			s.Memory.Reservation = 0
		}
	}
}

// checkSpec checks a spec with its defaults by itself, without what it refers to.
func checkSpec(f *faults, s *api.ServerSpec) {
	oneOf(f, "/spec/model", s.Model, api.Models...)
	oneOf(f, "/spec/state", s.State, api.StateRunning, api.StateStopped, api.StatePaused)
	oneOf(f, "/spec/firmware", s.Firmware, api.FirmwareBIOS, api.FirmwareUEFI)
	oneOf(f, "/spec/devices", s.Devices, api.DevicesVirtio, api.DevicesEmulated)
	oneOf(f, "/spec/autostart/policy", s.Autostart.Policy, api.AutostartLast, api.AutostartAlways, api.AutostartNever)
	oneOf(f, "/spec/restart/policy", s.Restart.Policy, api.RestartNever, api.RestartOnFailure, api.RestartAlways)
	between(f, "/spec/autostart/order", s.Autostart.Order, -1000, 1000)
	between(f, "/spec/restart/maxRetries", s.Restart.MaxRetries, 1, 1000)
	between(f, "/spec/stopTimeout", s.StopTimeout, api.Duration(time.Millisecond), api.Duration(time.Hour))
	if s.Image == "" {
		f.add("/spec/image", "is missing: name an image")
	}
	checkCPU(f, &s.CPU)
	between(f, "/spec/memory/limit", s.Memory.Limit, minMemory, maxMemory)
	between(f, "/spec/memory/reservation", s.Memory.Reservation, 1, maxMemory)
	if s.Memory.Reservation > s.Memory.Limit {
		f.add("/spec/memory/reservation", "is %s, more than the limit of %s", s.Memory.Reservation, s.Memory.Limit)
	}
	between(f, "/spec/pids", s.PIDs, 1, maxPIDs)
	between(f, "/spec/disk/size", s.Disk.Size, minDisk, maxDisk)
	const most = 1 << 40
	between(f, "/spec/disk/readIOPS", s.Disk.ReadIOPS, 1, most)
	between(f, "/spec/disk/writeIOPS", s.Disk.WriteIOPS, 1, most)
	between(f, "/spec/disk/readRate", s.Disk.ReadRate, 1, most)
	between(f, "/spec/disk/writeRate", s.Disk.WriteRate, 1, most)
	checkPorts(f, s.Ports)
	for i, g := range s.Grants {
		at := fmt.Sprintf("/spec/grants/%d", i)
		switch g.Kind {
		case api.GrantDedicatedCPU, api.GrantHugePages:
			f.add(at+"/kind", "%s is asked for by %s, not by a grant of its own", g.Kind, grantAt(s, g.Kind))
		default:
			checkGrant(f, at, s.Model, g)
		}
	}
	if len(s.Grants) > 32 {
		f.add("/spec/grants", "has %d grants, and may have 32", len(s.Grants))
	}
	checkApp(f, s.Model, s.App)
	checkGuest(f, s.Guest)
}

func checkCPU(f *faults, c *api.CPU) {
	between(f, "/spec/cpu/count", c.Count, 1, maxCPUs)
	if c.Count < 1 || c.Count > maxCPUs {
		return
	}
	whole := api.MilliCPU(c.Count) * api.CPU1
	between(f, "/spec/cpu/entitlement", c.Entitlement, 1, whole)
	between(f, "/spec/cpu/cap", c.Cap, 1, whole)
	between(f, "/spec/cpu/weight", c.Weight, 1, 10000)
	if c.Entitlement > c.Cap && c.Cap > 0 {
		f.add("/spec/cpu/cap", "is %s, less than the entitlement of %s", c.Cap, c.Entitlement)
	}
	if c.Dedicated && c.Entitlement != whole {
		f.add("/spec/cpu/entitlement", "of a server with dedicated CPUs is their number: %s", whole)
	}
}

func checkPorts(f *faults, ports []api.Port) {
	if len(ports) > 1 {
		f.add("/spec/ports", "has %d ports; a server has at most one today", len(ports))
	}
	for i, p := range ports {
		at := fmt.Sprintf("/spec/ports/%d", i)
		if p.Network == "" {
			f.add(at+"/network", "is missing: name a network")
		}
		if p.MAC == "" {
			continue
		}
		mac, err := net.ParseMAC(p.MAC)
		switch {
		case err != nil || len(mac) != 6 || mac.String() != strings.ToLower(p.MAC):
			f.add(at+"/mac", "%s is no MAC address: write aa:bb:cc:dd:ee:ff", quote(p.MAC))
		case mac[0]&1 != 0:
			f.add(at+"/mac", "%s is a group's address; a port's has an even first byte", p.MAC)
		case slices.Equal(mac, make(net.HardwareAddr, 6)):
			f.add(at+"/mac", "is zero")
		}
	}
}

var capability = regexp.MustCompile(`^CAP_[A-Z_]{2,40}$`)
var pciAddress = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// mountTag is what a virtual machine may know a granted directory by, other than a path. Engines have rules of their own.
var mountTag = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._]{0,30}$`)

func checkGrant(f *faults, at string, m api.Model, g api.Grant) {
	absolute := func(pointer, p string) {
		if !path.IsAbs(p) || path.Clean(p) != p || !printable(p) || len(p) > 1024 || strings.ContainsAny(p, ",:") {
			f.add(pointer, "%s is no plain absolute path", quote(p))
		}
	}
	without := func(field, what string, said bool) { // what would have no effect is refused
		if said {
			f.add(at+field, "a grant of %s has no %s", what, field[1:])
		}
	}
	switch g.Kind {
	case api.GrantDirectory:
		absolute(at+"/source", g.Source)
		if g.Target != "" && (m == api.ModelOS || !mountTag.MatchString(g.Target)) {
			absolute(at+"/target", g.Target)
		}
		if g.Target == "/" {
			f.add(at+"/target", "can't be the guest's root")
		}
	case api.GrantDevice:
		if pciAddress.MatchString(g.Source) {
			without("/target", "a PCI device", g.Target != "")
			without("/readOnly", "a PCI device", g.ReadOnly)
			return
		}
		absolute(at+"/source", g.Source)
		if !strings.HasPrefix(g.Source, "/dev/") {
			f.add(at+"/source", "%s is neither below /dev nor a PCI address (0000:00:00.0)", quote(g.Source))
		}
		if g.Target != "" {
			absolute(at+"/target", g.Target)
		}
	case api.GrantCapability:
		if !capability.MatchString(g.Source) {
			f.add(at+"/source", "%s is no capability: write it as CAP_NET_RAW (capabilities(7))", quote(g.Source))
		}
		without("/target", string(g.Kind), g.Target != "")
		without("/readOnly", string(g.Kind), g.ReadOnly)
	case api.GrantDedicatedCPU, api.GrantHugePages, api.GrantNesting:
		without("/source", string(g.Kind), g.Source != "")
		without("/target", string(g.Kind), g.Target != "")
		without("/readOnly", string(g.Kind), g.ReadOnly)
	default:
		oneOf(f, at+"/kind", g.Kind, api.GrantKinds...)
	}
}

func checkApp(f *faults, m api.Model, a *api.App) {
	if a == nil {
		return
	}
	if m != api.ModelOS {
		f.add("/spec/app", "application servers are of model os")
	}
	for i, args := range [][]string{a.Entrypoint, a.Args} {
		for _, arg := range args {
			if strings.ContainsRune(arg, 0) || len(arg) > 128<<10 {
				f.add([]string{"/spec/app/entrypoint", "/spec/app/args"}[i], "an argument has a zero byte or is too long (execve(2))")
				break
			}
		}
	}
	for name, value := range a.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) || len(value) > 128<<10 {
			f.add("/spec/app/env", "%s is no environment variable (environ(7))", quote(name))
		}
	}
	if a.WorkingDir != "" && (!path.IsAbs(a.WorkingDir) || !printable(a.WorkingDir)) {
		f.add("/spec/app/workingDir", "%s is no absolute path", quote(a.WorkingDir))
	}
	if !printable(a.User) || len(a.User) > 64 {
		f.add("/spec/app/user", "%s is neither user nor user:group", quote(a.User))
	}
}

var userName = regexp.MustCompile(`^[a-z_][-a-z0-9_]{0,31}$`) // useradd(8)

func checkGuest(f *faults, g *api.Guest) {
	if g == nil {
		return
	}
	if g.Hostname != "" && !hostname(g.Hostname) {
		f.add("/spec/guest/hostname", "%s is no host name (RFC 1123)", quote(g.Hostname))
	}
	if g.UserData != "" && (len(g.Users) > 0 || len(g.SSHKeys) > 0) {
		f.add("/spec/guest/userData", "stands for itself: with it, users and sshKeys are empty")
	}
	if len(g.UserData) > int(maxUserData) {
		f.add("/spec/guest/userData", "has %d bytes, and may have %d", len(g.UserData), maxUserData)
	}
	checkKeys(f, "/spec/guest/sshKeys", g.SSHKeys)
	seen := map[string]bool{}
	for i, u := range g.Users {
		at := fmt.Sprintf("/spec/guest/users/%d", i)
		if !userName.MatchString(u.Name) || seen[u.Name] {
			f.add(at+"/name", "%s is no user name, or is there twice (useradd(8))", quote(u.Name))
		}
		seen[u.Name] = true
		checkKeys(f, at+"/sshKeys", u.SSHKeys)
		if !printable(u.PasswordHash) || strings.ContainsRune(u.PasswordHash, ':') || (u.PasswordHash != "" && u.PasswordHash[0] != '$') {
			f.add(at+"/passwordHash", "is no hash as of crypt(5); make one with openssl passwd -6")
		}
	}
	if len(g.Users) > 64 {
		f.add("/spec/guest/users", "has %d users, and may have 64", len(g.Users))
	}
}

func checkKeys(f *faults, at string, keys []string) {
	for i, key := range keys {
		if !printable(key) || len(key) > 16<<10 || len(strings.Fields(key)) < 2 {
			f.add(fmt.Sprintf("%s/%d", at, i), "is no line of authorized_keys (sshd(8))")
		}
	}
	if len(keys) > 64 {
		f.add(at, "has %d keys, and may have 64", len(keys))
	}
}
