package api

import (
	"errors"
	"fmt"
	"strings"
)

// Code is a stable word for what was wrong, the same in every release.
type Code string

const (
	CodeInvalid      Code = "invalid"                // a field's value is not acceptable
	CodeMalformed    Code = "malformed"              // the body is no JSON, or not of the form
	CodeUnknownField Code = "unknown-field"          // the API has no such field
	CodeTooLarge     Code = "too-large"              // the body is larger than the API takes
	CodeNotFound     Code = "not-found"              // there is no such resource, or no such path
	CodeExists       Code = "exists"                 // the name is taken
	CodeConflict     Code = "conflict"               // the revision is stale
	CodeInUse        Code = "in-use"                 // something still needs it
	CodeProtected    Code = "protected"              // delete protection
	CodeCapacity     Code = "no-capacity"            // no host has room
	CodeQuota        Code = "quota-exceeded"         // the tenant's quota
	CodeForbidden    Code = "forbidden"              // not allowed to this tenant or user
	CodeUnsupported  Code = "unsupported"            // the engine or host can't do it
	CodeWrongState   Code = "wrong-state"            // not in the server's present phase
	CodeBadImage     Code = "bad-image"              // the image is damaged or none
	CodeUnavailable  Code = "unavailable"            // the store or the host does not answer
	CodeInternal     Code = "internal"               // a fault of Croft's own; the daemon's log has more of it
	CodeKeyReused    Code = "idempotency-key-reused" // the Idempotency-Key was used for another request
	CodeMethod       Code = "method-not-allowed"     // the resource is there, and can't be acted on in this way
	CodeExpired      Code = "revision-expired"       // a watch asks for changes that are not remembered any more
)

// HTTPStatus is the status that a problem of this code is answered with (RFC 9110).
func (c Code) HTTPStatus() int {
	switch c {
	case CodeInvalid, CodeUnknownField, CodeBadImage:
		return 422
	case CodeMalformed:
		return 400
	case CodeTooLarge:
		return 413
	case CodeNotFound:
		return 404
	case CodeExists, CodeInUse, CodeProtected, CodeWrongState, CodeCapacity, CodeQuota, CodeKeyReused:
		return 409
	case CodeConflict:
		return 412
	case CodeForbidden:
		return 403
	case CodeUnsupported:
		return 422
	case CodeUnavailable:
		return 503
	case CodeMethod:
		return 405
	case CodeExpired:
		return 410
	}
	return 500
}

// Problem is an error that a user gets (RFC 9457, application/problem+json).
type Problem struct {
	Type   string       `json:"type" doc:"URI of the code's description."`
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Code   Code         `json:"code"`
	Detail string       `json:"detail" doc:"What was wrong and what to do."`
	Errors []FieldError `json:"errors,omitempty" doc:"The fields at fault."`
	Short  []Shortage   `json:"short,omitempty" doc:"What there is not enough of, for no-capacity and quota-exceeded."`
}

// FieldError is one field at fault.
type FieldError struct {
	Pointer string `json:"pointer" doc:"JSON pointer to the field in the request's body (RFC 6901), such as /spec/cpu/cap."`
	Code    Code   `json:"code,omitempty"`
	Message string `json:"message"`
}

// Shortage says what there is not enough of, and by how much.
type Shortage struct {
	Resource string `json:"resource" doc:"cpu, memory, huge-pages, disk, servers, networks, images, address, host-cpu."`
	Where    string `json:"where" doc:"Host or tenant that is short."`
	Asked    string `json:"asked"`
	Free     string `json:"free"`
	Short    string `json:"short" doc:"Asked less free."`
}

// Error writes the problem on one line.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Detail)
	for _, e := range p.Errors {
		fmt.Fprintf(&b, "; %s: %s", e.Pointer, e.Message)
	}
	return b.String()
}

// Is lets errors.Is compare problems by code.
func (p *Problem) Is(target error) bool {
	var other *Problem
	return errors.As(target, &other) && other.Code == p.Code && other.Detail == ""
}

// Errorf makes a problem with a code and a detail.
func Errorf(code Code, format string, args ...any) *Problem {
	return &Problem{
		Type:   "https://croftproject.github.io/problems/" + string(code),
		Title:  strings.ReplaceAll(string(code), "-", " "),
		Status: code.HTTPStatus(),
		Code:   code,
		Detail: fmt.Sprintf(format, args...),
	}
}

// Invalid makes a problem out of field errors; nil where there are none.
func Invalid(fields []FieldError) *Problem {
	if len(fields) == 0 {
		return nil
	}
	p := Errorf(CodeInvalid, "the request has %d invalid field(s)", len(fields))
	if fields[0].Code != "" {
		p = Errorf(fields[0].Code, "the request has %d invalid field(s)", len(fields))
	}
	p.Errors = fields
	return p
}

// CodeOf is the code of an error: that of the problem it wraps, or internal.
func CodeOf(err error) Code {
	var p *Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return CodeInternal
}
