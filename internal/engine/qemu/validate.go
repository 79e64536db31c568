package qemu

import (
	"fmt"
	"strings"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

// Limits of the machines.
const (
	maxCPUs      = 255            // more need an IOMMU with interrupt remapping
	minMemory    = 32 * api.MiB   // firmware and a small kernel
	minUEFI      = 192 * api.MiB  // a small kernel and its RAM file system beside OVMF, which crashes where they don't fit
	maxMemory    = 4 * api.TiB    //
	hugePageSize = 2 * api.MiB    // x86-64's default huge page
	maxMountTag  = 31             // of 9p (linux, include/uapi/linux/virtio_9p.h; QEMU, MAX_TAG_LEN)
	memoryGrain  = 1024 * 8       // QEMU rounds memory up to it
	maxSocket    = 108 - len("x") // of a unix socket's path (unix(7))
)

type fieldErrors []api.FieldError

func (f *fieldErrors) add(code api.Code, pointer, format string, args ...any) {
	*f = append(*f, api.FieldError{Pointer: pointer, Code: code, Message: fmt.Sprintf(format, args...)})
}

func validateFull(s *api.ServerSpec) []api.FieldError {
	errs := validateCommon(s, api.ModelFull, Full)
	if s.Firmware != "" && s.Firmware != api.FirmwareBIOS && s.Firmware != api.FirmwareUEFI {
		errs.add(api.CodeInvalid, "/spec/firmware", "is bios or uefi, not %q", s.Firmware)
	}
	if s.Firmware == api.FirmwareUEFI && s.Memory.Limit < minUEFI {
		errs.add(api.CodeInvalid, "/spec/memory/limit", "is at least %v where the firmware is uefi, not %v", minUEFI, s.Memory.Limit)
	}
	if s.Devices != "" && s.Devices != api.DevicesVirtio && s.Devices != api.DevicesEmulated {
		errs.add(api.CodeInvalid, "/spec/devices", "is virtio or emulated, not %q", s.Devices)
	}
	errs.grants(s.Grants, map[api.GrantKind]func(string, api.Grant){
		api.GrantDirectory: errs.directory, api.GrantDevice: errs.device, api.GrantNesting: nil,
	}, Full)
	return errs
}

func validateMicroVM(s *api.ServerSpec) []api.FieldError {
	errs := validateCommon(s, api.ModelPara, MicroVM)
	if s.Firmware == api.FirmwareUEFI {
		errs.add(api.CodeUnsupported, "/spec/firmware", "a microvm has no firmware to choose: use model full for uefi")
	}
	if s.Devices == api.DevicesEmulated {
		errs.add(api.CodeUnsupported, "/spec/devices", "a microvm has virtio devices only: use model full for emulated ones")
	}
	if s.CDROM != "" {
		errs.add(api.CodeUnsupported, "/spec/cdrom", "a microvm has no CD-ROM drive: use model full")
	}
	errs.grants(s.Grants, map[api.GrantKind]func(string, api.Grant){
		api.GrantDirectory: errs.directory, api.GrantNesting: nil,
	}, MicroVM)
	return errs
}

func validateCommon(s *api.ServerSpec, model api.Model, name string) fieldErrors {
	var errs fieldErrors
	if s.Model != model {
		errs.add(api.CodeInvalid, "/spec/model", "engine %s gives model %s, not %s", name, model, s.Model)
	}
	if s.CPU.Count < 1 || s.CPU.Count > maxCPUs {
		errs.add(api.CodeInvalid, "/spec/cpu/count", "is 1 to %d for engine %s, not %d", maxCPUs, name, s.CPU.Count)
	}
	switch limit := s.Memory.Limit; {
	case limit < minMemory || limit > maxMemory:
		errs.add(api.CodeInvalid, "/spec/memory/limit", "is %v to %v for engine %s, not %v", minMemory, maxMemory, name, limit)
	case limit%memoryGrain != 0:
		errs.add(api.CodeInvalid, "/spec/memory/limit", "is a multiple of 8KiB, not %v", limit)
	case s.Memory.HugePages && limit%hugePageSize != 0:
		errs.add(api.CodeInvalid, "/spec/memory/limit", "is a multiple of %v where huge pages are used, not %v", hugePageSize, limit)
	}
	if s.App != nil {
		errs.add(api.CodeUnsupported, "/spec/app", "engine %s boots a system: use model os for an application", name)
	}
	if len(s.Ports) > maxNICs {
		errs.add(api.CodeInvalid, "/spec/ports", "are at most %d for engine %s, not %d", maxNICs, name, len(s.Ports))
	}
	return errs
}

// grants checks each grant with its kind's check; nil where there is nothing to check.
func (f *fieldErrors) grants(grants []api.Grant, checks map[api.GrantKind]func(string, api.Grant), name string) {
	tags := map[string]bool{}
	for i, g := range grants {
		pointer := fmt.Sprintf("/spec/grants/%d", i)
		check, known := checks[g.Kind]
		if !known {
			f.add(api.CodeUnsupported, pointer+"/kind", "engine %s can't hand over a grant of kind %q", name, g.Kind)
			continue
		}
		if check != nil {
			check(pointer, g)
		}
		if g.Kind == api.GrantDirectory {
			if tags[mountTag(g)] {
				f.add(api.CodeInvalid, pointer+"/target", "another grant has the mount tag %q", mountTag(g))
			}
			if tags[mountTag(g)] = true; len(tags) > maxDirs {
				f.add(api.CodeInvalid, pointer, "is one directory too many: engine %s takes %d", name, maxDirs)
			}
		}
	}
}

func (f *fieldErrors) directory(pointer string, g api.Grant) {
	if !strings.HasPrefix(g.Source, "/") {
		f.add(api.CodeInvalid, pointer+"/source", "is an absolute path, not %q", g.Source)
	}
	if tag := mountTag(g); tag == "" || len(tag) > maxMountTag {
		f.add(api.CodeInvalid, pointer+"/target", "is the tag that the guest mounts by, of 1 to %d characters, not %q", maxMountTag, tag)
	}
}

func (f *fieldErrors) device(pointer string, g api.Grant) {
	if !pciAddress.MatchString(g.Source) {
		f.add(api.CodeInvalid, pointer+"/source", "is a PCI address such as 0000:01:00.0, not %q", g.Source)
	}
	if g.Target != "" {
		f.add(api.CodeInvalid, pointer+"/target", "has no effect on a PCI device")
	}
	if g.ReadOnly {
		f.add(api.CodeInvalid, pointer+"/readOnly", "has no effect on a PCI device: the guest has all of it")
	}
}

// mountTag is what the guest mounts a granted directory by: mount -t 9p -o trans=virtio TAG DIR.
func mountTag(g api.Grant) string {
	if g.Target != "" {
		return g.Target
	}
	return g.Source
}

// validateMachine checks what a spec does not hold.
func validateMachine(m *engine.Machine, p paths) error {
	for _, path := range []string{p.control, p.events, p.vnc} {
		if len(path) > maxSocket {
			return fmt.Errorf("socket path %s is longer than %d bytes", path, maxSocket)
		}
	}
	if m.IDs.Base == 0 {
		return fmt.Errorf("machine %s has no user of its own", m.ID)
	}
	return nil
}
