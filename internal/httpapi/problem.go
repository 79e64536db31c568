package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"

	"github.com/croftproject/croft/api"
)

// problemType is the media type of RFC 9457.
const problemType = "application/problem+json"

// problem is api.Problem as the router's error.
type problem struct{ api.Problem }

func (p *problem) Error() string             { return p.Problem.Error() }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) ContentType(string) string { return problemType }

// The router makes errors of its own through these hooks; they are the library's, global to the process.
func init() {
	huma.NewError = newRouterError
	huma.DefaultArrayNullable = false
	huma.ValidateStrictCasing = true
}

// newRouterError translates an error of the router: its form is a parameter that is missing, unknown or ill-formed.
func newRouterError(status int, message string, errs ...error) huma.StatusError {
	for _, err := range errs {
		var p *api.Problem
		if errors.As(err, &p) {
			return &problem{*p}
		}
	}
	p := api.Errorf(codeOfStatus(status), "%s", message)
	if status != 0 {
		p.Status = status
	}
	for _, err := range errs {
		if err == nil {
			continue
		}
		p.Errors = append(p.Errors, parameterError(err))
	}
	if len(p.Errors) > 0 && p.Code == api.CodeInvalid {
		fields := p.Errors
		p = api.Errorf(fields[0].Code, "the request's parameters are not acceptable")
		p.Errors = fields
	}
	return &problem{*p}
}

// parameterError names a query parameter as "?limit" and a header as "header:If-Match": a JSON pointer reaches the body only.
func parameterError(err error) api.FieldError {
	field := api.FieldError{Code: api.CodeInvalid, Message: err.Error()}
	var d huma.ErrorDetailer
	if !errors.As(err, &d) {
		return field
	}
	detail := d.ErrorDetail()
	field.Message = detail.Message
	where, name, _ := strings.Cut(detail.Location, ".")
	switch where {
	case "query":
		field.Pointer = "?" + name
	case "header", "path":
		field.Pointer = where + ":" + name
	default:
		field.Pointer = detail.Location
	}
	if detail.Message == "unknown query parameter" {
		field.Code = api.CodeUnknownField
	}
	return field
}

// bodyError translates an error of the schema validation of a body that was decoded as doc.
func bodyError(err error, doc any) api.FieldError {
	field := api.FieldError{Code: api.CodeInvalid, Message: err.Error()}
	var d huma.ErrorDetailer
	if !errors.As(err, &d) {
		return field
	}
	detail := d.ErrorDetail()
	field.Pointer = pointer(detail.Location, doc)
	field.Message = sentence(detail.Message)
	if name, ok := strings.CutSuffix(field.Message, " is required"); ok {
		field.Pointer, field.Message = field.Pointer+"/"+escape(name), "is required"
	}
	if detail.Message == validation.MsgUnexpectedProperty {
		field.Code = api.CodeUnknownField
	}
	return field
}

// sentence words the validator's messages as advice.
func sentence(m string) string {
	switch m {
	case validation.MsgUnexpectedProperty:
		return "there is no such field"
	case validation.MsgExpectedMatchAtLeastOneSchema:
		return "must be a string or a number"
	}
	if name, ok := strings.CutPrefix(m, "expected required property "); ok {
		return strings.TrimSuffix(name, " to be present") + " is required"
	}
	if values, ok := strings.CutPrefix(m, `expected value to be one of "`); ok {
		return "must be one of " + strings.TrimSuffix(values, `"`)
	}
	if rest, ok := strings.CutPrefix(m, "expected number "); ok {
		return "must be a number " + rest
	}
	if rest, ok := strings.CutPrefix(m, "expected "); ok {
		return "must be: " + rest
	}
	return m
}

// codeOfStatus is the code of an error of which only the status is known.
func codeOfStatus(status int) api.Code {
	switch status {
	case http.StatusBadRequest:
		return api.CodeMalformed
	case http.StatusForbidden, http.StatusUnauthorized:
		return api.CodeForbidden
	case http.StatusNotFound:
		return api.CodeNotFound
	case http.StatusMethodNotAllowed:
		return api.CodeMethod
	case http.StatusRequestEntityTooLarge:
		return api.CodeTooLarge
	case http.StatusUnprocessableEntity, http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return api.CodeInvalid
	case http.StatusServiceUnavailable:
		return api.CodeUnavailable
	}
	return api.CodeInternal
}

// asProblem is what a user gets to see of err: a problem as it is, anything else without its text, which may hold
// paths and the like; the request log has it.
func asProblem(err error) *api.Problem {
	var p *api.Problem
	if errors.As(err, &p) {
		return p
	}
	var own *problem
	if errors.As(err, &own) {
		return &own.Problem
	}
	return api.Errorf(api.CodeInternal, "the daemon failed to do this; its log has the reason")
}

// writeProblem answers with a problem.
func writeProblem(w http.ResponseWriter, p *api.Problem) {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // the type has nothing that can't be encoded
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	w.Write(append(body, '\n')) //nolint:errcheck // the client is gone; nobody is left to tell
}
