package control

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/croftproject/croft/api"
)

var (
	label    = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`) // RFC 1035, section 2.3.1
	labelKey = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9._/]{0,61}[A-Za-z0-9])?$`)
)

const (
	maxLabels     = 64
	maxLabelValue = 256
)

// faults collects the fields at fault.
type faults []api.FieldError

func (f *faults) add(pointer, format string, args ...any) {
	*f = append(*f, api.FieldError{Pointer: pointer, Code: api.CodeInvalid, Message: fmt.Sprintf(format, args...)})
}

func (f *faults) forbid(pointer, format string, args ...any) {
	*f = append(*f, api.FieldError{Pointer: pointer, Code: api.CodeForbidden, Message: fmt.Sprintf(format, args...)})
}

// err is the problem of all faults, or nil.
func (f faults) err() error {
	if p := api.Invalid(f); p != nil {
		return p
	}
	return nil
}

// between demands low ≤ n ≤ high, where n is not its zero value.
func between[N ~int | ~int64](f *faults, pointer string, n, low, high N) {
	if n != 0 && (n < low || n > high) {
		f.add(pointer, "is %v, and must be %v to %v", n, low, high)
	}
}

// oneOf demands one of some values.
func oneOf[S ~string](f *faults, pointer string, value S, allowed ...S) {
	if !slices.Contains(allowed, value) {
		f.add(pointer, "is %s, and must be one of %v", quote(string(value)), allowed)
	}
}

// quote shows what a user wrote, cut to a sane length.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return fmt.Sprintf("%q", s)
}

func checkName(f *faults, name string) {
	if !label.MatchString(name) {
		f.add("/name", "%s is no name: write 1 to 63 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'", quote(name))
	}
}

func checkLabels(f *faults, labels map[string]string) {
	if len(labels) > maxLabels {
		f.add("/labels", "has %d labels, and may have %d", len(labels), maxLabels)
		return
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if !labelKey.MatchString(key) {
			f.add("/labels", "%s is no label's key: write 1 to 63 letters, digits, '-', '_', '.' and '/'", quote(key))
		} else if v := labels[key]; len(v) > maxLabelValue || !printable(v) {
			f.add("/labels/"+pointerEscape.Replace(key), "must be at most %d bytes of printable text", maxLabelValue)
		}
	}
}

var pointerEscape = strings.NewReplacer("~", "~0", "/", "~1") // RFC 6901

// printable is text in one line, without control characters.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// hostname is a name of labels (RFC 1123, section 2.1).
func hostname(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !hostLabel.MatchString(part) {
			return false
		}
	}
	return true
}

var hostLabel = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?$`)

// overlapping tells whether a prefix overlaps any of others.
func overlapping(p netip.Prefix, others []netip.Prefix) bool {
	return slices.ContainsFunc(others, p.Overlaps)
}
