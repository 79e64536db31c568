package uml

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/croftproject/croft/api"
)

// minMemory is the least memory that the kernel boots with and leaves a userspace room.
const minMemory = 32 * api.MiB

// Validate refuses what a UML guest can't have.
func (e *Engine) Validate(spec *api.ServerSpec) []api.FieldError {
	var errs []api.FieldError
	refuse := func(pointer string, code api.Code, format string, args ...any) {
		errs = append(errs, api.FieldError{Pointer: pointer, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	if spec.Model != api.ModelPara {
		refuse("/spec/model", api.CodeUnsupported, "the engine uml gives the model para, not %s", spec.Model)
	}
	if spec.CPU.Count > 1 {
		refuse("/spec/cpu/count", api.CodeUnsupported, "the engine uml gives a guest one virtual CPU; ask for 1, or for another engine or model")
	}
	if spec.Memory.Limit < minMemory {
		refuse("/spec/memory/limit", api.CodeInvalid, "a guest with a kernel of its own needs at least %v", minMemory)
	}
	if spec.Memory.HugePages {
		refuse("/spec/memory/hugePages", api.CodeUnsupported, "the engine uml can't back a guest's memory with huge pages")
	}
	if spec.CDROM != "" {
		refuse("/spec/cdrom", api.CodeUnsupported, "only servers of the model full have a CD-ROM drive")
	}
	if spec.App != nil {
		refuse("/spec/app", api.CodeUnsupported, "only servers of the model os run an application image")
	}
	for i, g := range spec.Grants {
		errs = append(errs, validateGrant(fmt.Sprintf("/spec/grants/%d", i), g)...)
	}
	return errs
}

func validateGrant(pointer string, g api.Grant) []api.FieldError {
	if g.Kind != api.GrantDirectory {
		return []api.FieldError{{
			Pointer: pointer + "/kind", Code: api.CodeUnsupported,
			Message: fmt.Sprintf("the engine uml can't grant %q; it grants directories", g.Kind),
		}}
	}
	var errs []api.FieldError
	check := func(field, path string) {
		if !plainPath(path) {
			errs = append(errs, api.FieldError{
				Pointer: pointer + "/" + field, Code: api.CodeInvalid,
				Message: "must be an absolute path without '..', commas, quotes, spaces and control characters: it goes through the guest kernel's command line",
			})
		}
	}
	check("source", g.Source)
	if g.Target != "" {
		check("target", g.Target)
	}
	if g.Source == "/" {
		errs = append(errs, api.FieldError{Pointer: pointer + "/source", Code: api.CodeInvalid, Message: "must not be the host's whole file system"})
	}
	return errs
}

// plainPath tells whether a path can stand in the kernel's command line, in an option that commas divide.
func plainPath(path string) bool {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return false
	}
	return !strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c == 0x7f || c == ',' || c == ':' || c == '"' || c == '\'' })
}
