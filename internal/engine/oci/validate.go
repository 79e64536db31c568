package oci

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/croftproject/croft/api"
)

// leastMemory is what a guest's start takes: the runtime's own first stage runs within the guest's limit.
const leastMemory = 24 << 20

// Validate checks what is special to model os. See engine.Engine.
func (e *Engine) Validate(spec *api.ServerSpec) []api.FieldError {
	var errs []api.FieldError
	bad := func(pointer string, code api.Code, format string, args ...any) {
		errs = append(errs, api.FieldError{Pointer: pointer, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	if spec.Model != api.ModelOS {
		bad("/spec/model", api.CodeUnsupported, "engine %s gives model %s", e.Traits().Name, api.ModelOS)
		return errs
	}
	if spec.Firmware == api.FirmwareUEFI {
		bad("/spec/firmware", api.CodeUnsupported, "an os server runs on the host's kernel and has no firmware")
	}
	if spec.Devices == api.DevicesEmulated {
		bad("/spec/devices", api.CodeUnsupported, "an os server has no emulated devices")
	}
	if spec.CDROM != "" {
		bad("/spec/cdrom", api.CodeUnsupported, "an os server has no CD-ROM drive")
	}
	if spec.Memory.HugePages {
		bad("/spec/memory/hugePages", api.CodeUnsupported, "an os server's memory is the host kernel's to lay out; leave this out")
	}
	if spec.Memory.Limit != 0 && spec.Memory.Limit < leastMemory {
		bad("/spec/memory/limit", api.CodeInvalid, "an os server needs %s or more to start", api.Bytes(leastMemory))
	}
	validateApp(spec.App, bad)
	for i, g := range spec.Grants {
		validateGrant(fmt.Sprintf("/spec/grants/%d", i), g, bad)
	}
	return errs
}

type reporter func(pointer string, code api.Code, format string, args ...any)

func validateApp(app *api.App, bad reporter) {
	if app == nil {
		return
	}
	if app.WorkingDir != "" && !path.IsAbs(app.WorkingDir) {
		bad("/spec/app/workingDir", api.CodeInvalid, "must be an absolute path in the guest")
	}
	for name, value := range app.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			bad("/spec/app/env", api.CodeInvalid, "%q can't be the name of a variable, or its value has a NUL in it", name)
		}
	}
	for pointer, words := range map[string][]string{"/spec/app/entrypoint": app.Entrypoint, "/spec/app/args": app.Args} {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, "\x00") }) {
			bad(pointer, api.CodeInvalid, "has a NUL in it")
		}
	}
}

func validateGrant(pointer string, g api.Grant, bad reporter) {
	switch g.Kind {
	case api.GrantDirectory, api.GrantDevice:
		if !cleanPath(g.Source) {
			bad(pointer+"/source", api.CodeInvalid, "must be an absolute path on the host, without '..' or doubled slashes")
		}
		target, field := g.Target, "/target"
		if target == "" {
			target, field = g.Source, "/source"
		}
		if !cleanPath(target) || reserved(target, g.Kind) {
			bad(pointer+field, api.CodeInvalid, "%q can't be where the guest sees it; name an absolute path outside /proc, /sys and /dev (devices: below /dev)", target)
		}
	case api.GrantCapability:
		name := capName(g.Source)
		switch {
		case slices.Contains(uselessCaps, name):
			bad(pointer+"/source", api.CodeUnsupported, "%s has no effect in an os server, which has a user namespace of its own", g.Source)
		case !slices.Contains(slices.Concat(systemCaps, applicationCaps, grantableCaps), name):
			bad(pointer+"/source", api.CodeInvalid, "%q is no capability", g.Source)
		}
	case api.GrantNesting:
	default:
		bad(pointer+"/kind", api.CodeInvalid, "no grant of kind %q", g.Kind)
	}
}

func cleanPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && !strings.Contains(p, "\x00")
}

// reserved tells whether the engine itself mounts at the path.
func reserved(target string, kind api.GrantKind) bool {
	below := func(dir string) bool { return target == dir || strings.HasPrefix(target, dir+"/") }
	if kind == api.GrantDevice {
		return !below("/dev") || target == "/dev" || below("/dev/pts") || below("/dev/shm") || below("/dev/mqueue")
	}
	return below("/proc") || below("/sys") || below("/dev")
}
