package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// exitCode ends the program with a code and says nothing: what was run has said it.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// codedError is reported as it is, and ends the program with its code.
type codedError struct {
	error
	code int
}

func (c codedError) Unwrap() error { return c.error }

// usageError is a command that was written wrong.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usage(err error) error { return usageError{err} }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }
func (h hinted) Hint() string  { return h.hint }

// report prints an error for people, and returns the exit code: what was wrong, each field, what is short, what to do.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	style := styleOf(w)
	label := style.paint(red, "error:")
	hint := func(text string) {
		if text != "" {
			fmt.Fprintf(w, "%s %s\n", style.paint(bold, "→"), text)
		}
	}
	var wrong usageError
	var problem *api.Problem
	var advice interface{ Hint() string }
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintf(w, "%s %v\n", label, err)
		hint(cmd.CommandPath() + " --help tells how it is used")
		return exitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintf(w, "%s interrupted\n", label)
	case errors.As(err, &advice):
		fmt.Fprintf(w, "%s %v\n", label, err)
		hint(advice.Hint())
	case errors.As(err, &problem):
		where, _ := strings.CutSuffix(err.Error(), problem.Error()) // what wraps the problem
		reportProblem(w, label+" "+where, problem)
		hint(adviceFor(problem, cmd))
	default:
		fmt.Fprintf(w, "%s %v\n", label, err)
	}
	return exitFailure
}

func reportProblem(w io.Writer, label string, p *api.Problem) {
	fmt.Fprintf(w, "%s%s\n", label, p.Detail)
	for _, f := range p.Errors {
		fmt.Fprintf(w, "  %s: %s\n", f.Pointer, f.Message)
	}
	for _, s := range p.Short {
		if strings.Contains(p.Detail, fmt.Sprintf("%s: %s asked of %s,", s.Resource, amount(s, s.Asked), s.Where)) {
			continue // the daemon's sentence says it already
		}
		fmt.Fprintf(w, "  %s on %s: asked %s, free %s, short by %s\n", s.Resource, s.Where, amount(s, s.Asked), amount(s, s.Free), amount(s, s.Short))
	}
}

// amount rounds sizes for people.
func amount(s api.Shortage, exact string) string {
	if b, err := api.ParseBytes(exact); err == nil && (s.Resource == "memory" || s.Resource == "disk") {
		return b.Approx()
	}
	return exact
}

// adviceFor is what to do about a problem.
func adviceFor(p *api.Problem, cmd *cobra.Command) string {
	noun := ""
	if parent := cmd.Parent(); parent != nil && parent.HasParent() {
		noun = parent.Name()
	}
	switch p.Code {
	case api.CodeNotFound:
		return whereToLook(p, noun)
	case api.CodeExists:
		return "choose another name, or change the one that is there with edit"
	case api.CodeConflict:
		return "somebody else changed it meanwhile: look at it again, and repeat the command"
	case api.CodeProtected:
		if noun == "server" { // a tenant's can't be taken off
			return "take the protection off first: croft server edit NAME --set deleteProtection=false"
		}
	case api.CodeWrongState:
		if cmd.Name() == "delete" && cmd.Flags().Lookup("force") != nil {
			return "stop it first, or delete it with --force"
		}
	case api.CodeCapacity:
		if len(p.Short) > 0 && p.Short[0].Resource == "address" {
			return "take another network, or delete servers that are not needed in this one"
		}
		if len(p.Short) > 0 && p.Short[0].Resource == "bandwidth" {
			if strings.HasPrefix(p.Short[0].Where, "tenant ") {
				return "croft tenant show NAME shows what the tenant has; ask for less, or lower what is committed to its other networks"
			}
			return "croft host show NAME shows what of its uplink is committed; ask for less, or lower what is committed to others"
		}
		return "croft host list shows what is free; ask for less, or delete what is not needed"
	case api.CodeQuota:
		tenant := "TENANT"
		if len(p.Short) > 0 {
			tenant = p.Short[0].Where // the tenant's own quota, or that of one above it
		}
		return fmt.Sprintf("croft tenant show %s shows the quota and what is used of it", tenant)
	case api.CodeForbidden:
		if len(p.Errors) > 0 { // what a tenant asks for; who asks is not the matter
			return "the operator allows it with: croft tenant edit TENANT (spec.grants); croft tenant show TENANT tells what is allowed"
		}
		return "the operator may do this: run the command as root"
	case api.CodeUnavailable:
		return "try again in a moment; the daemon's log has the reason (journalctl -u croft)"
	case api.CodeInternal:
		return "the daemon's log has the reason (journalctl -u croft)"
	}
	return ""
}

// whereToLook is where the right name of what was not found is.
func whereToLook(p *api.Problem, noun string) string {
	switch {
	case strings.HasPrefix(p.Detail, "there is no tenant "), noun == "tenant":
		return "croft tenant list shows what there is"
	case noun == "":
		return ""
	case noun == "host":
		return "croft host list shows what there is"
	}
	return fmt.Sprintf("croft %s list shows what there is; --tenant chooses another tenant", noun)
}

var _ interface{ Hint() string } = (*client.Unreachable)(nil)
