package httpapi

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/croftproject/croft/api"
)

const (
	bodyLimit  = 1 << 20 // bytes of a JSON body
	depthLimit = 32      // levels of nesting; the deepest resource has 6
)

// decoder reads bodies of one Go type: form first, then the schema, then the values.
type decoder struct {
	registry huma.Registry
	schema   *huma.Schema
	typ      reflect.Type
}

func newDecoder[T any](r huma.Registry) decoder {
	t := reflect.TypeFor[T]()
	return decoder{registry: r, schema: r.Schema(t, false, t.Name()), typ: t}
}

// decode reads data into out, a pointer to the decoder's type. Errors are *api.Problem.
func (d decoder) decode(data []byte, out any) error {
	doc, err := parse(data)
	if err != nil {
		return err
	}
	if _, ok := doc.(map[string]any); !ok {
		return api.Errorf(api.CodeMalformed, "the body must be a JSON object")
	}
	if p := api.Invalid(d.check(doc)); p != nil {
		return p
	}
	if err := json.Unmarshal(data, out); err != nil {
		return syntaxProblem(err, data)
	}
	return nil
}

// parse reads a document whose numbers stay as they are written.
func parse(data []byte) (doc any, err error) {
	if err := checkForm(data); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, syntaxProblem(err, data)
	}
	return doc, nil
}

// floats is a copy of the document with the numbers that the validator takes. One that is out of range is a field error.
func floats(doc any, at string, fields *[]api.FieldError) any {
	switch v := doc.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			*fields = append(*fields, api.FieldError{Pointer: at, Code: api.CodeInvalid, Message: "is out of range"})
		}
		return f
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, value := range v {
			out[name] = floats(value, at+"/"+escape(name), fields)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = floats(value, at+"/"+strconv.Itoa(i), fields)
		}
		return out
	}
	return doc
}

// check validates a decoded document against the type's values and the schema.
func (d decoder) check(doc any) []api.FieldError {
	var fields []api.FieldError
	checkText(d.typ, doc, "", &fields)
	plain := floats(doc, "", &fields)
	told := map[string]bool{}
	for _, f := range fields {
		told[f.Pointer] = true
	}
	var result huma.ValidateResult
	path := huma.NewPathBuffer(nil, 0)
	huma.Validate(d.registry, d.schema, path, huma.ModeWriteToServer, plain, &result)
	for _, err := range result.Errors {
		if f := bodyError(err, doc); !told[f.Pointer] {
			fields = append(fields, f)
		}
	}
	slices.SortStableFunc(fields, func(a, b api.FieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return fields
}

// checkText tries every value that a type of ours reads from text, so that its own message comes with a pointer.
func checkText(t reflect.Type, v any, at string, fields *[]api.FieldError) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil {
		return
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		encoded, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(encoded, reflect.New(t).Interface())
		}
		if err != nil {
			*fields = append(*fields, api.FieldError{Pointer: at, Code: api.CodeInvalid, Message: textMessage(err)})
		}
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			ft, positive := member(t, name)
			if ft == nil {
				continue
			}
			before := len(*fields)
			checkText(ft, value, at+"/"+escape(name), fields)
			if positive && len(*fields) == before && isZero(ft, value) {
				*fields = append(*fields, api.FieldError{
					Pointer: at + "/" + escape(name), Code: api.CodeInvalid, Message: "must be more than 0; leave it out for the default",
				})
			}
		}
	case []any:
		if t.Kind() != reflect.Slice {
			return
		}
		for i, value := range v {
			checkText(t.Elem(), value, at+"/"+strconv.Itoa(i), fields)
		}
	}
}

func textMessage(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return "must be a string"
	}
	return err.Error()
}

// isZero tells whether a value that t can take is its zero, which would be read as left out.
func isZero(t reflect.Type, v any) bool {
	encoded, err := json.Marshal(v)
	if err != nil {
		return false
	}
	out := reflect.New(t)
	return v != nil && json.Unmarshal(encoded, out.Interface()) == nil && out.Elem().IsZero()
}

// member is the type of an object's member, and whether it must be more than zero where it is given; nil where t has none
// of that name.
func member(t reflect.Type, name string) (of reflect.Type, positive bool) {
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), false
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
				return f.Type, f.Tag.Get("positive") == "true"
			}
		}
	}
	return nil, false
}

// checkForm refuses what would be read differently by different readers, or be costly to read: names given twice,
// deep nesting, and anything after the end of the document.
func checkForm(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return api.Errorf(api.CodeMalformed, "the body is empty; it must be a JSON object")
	}
	tokens := json.NewDecoder(bytes.NewReader(data))
	tokens.UseNumber()
	var open []*level
	for {
		token, err := tokens.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return syntaxProblem(err, data)
		}
		at := tokens.InputOffset()
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			open = open[:len(open)-1]
			if len(open) == 0 && len(bytes.TrimSpace(data[at:])) > 0 {
				return api.Errorf(api.CodeMalformed, "there is more after the end of the JSON document, at byte %d", at)
			}
			continue
		}
		if len(open) > 0 {
			if err := open[len(open)-1].take(token, open); err != nil {
				return err
			}
		}
		if delim, ok := token.(json.Delim); ok {
			if len(open) == depthLimit {
				return api.Errorf(api.CodeMalformed, "the body is nested deeper than %d levels", depthLimit)
			}
			open = append(open, &level{object: delim == '{', names: map[string]bool{}, key: true})
		}
	}
}

// level is an object or array that is open while a document is read.
type level struct {
	object bool
	key    bool // the next token is a name
	name   string
	index  int
	names  map[string]bool
}

// take notes a token that is a member of the level.
func (l *level) take(token json.Token, open []*level) error {
	if !l.object {
		l.name = strconv.Itoa(l.index)
		l.index++
		return nil
	}
	if !l.key {
		l.key = true
		return nil
	}
	l.key = false
	l.name, _ = token.(string)
	if !l.names[l.name] {
		l.names[l.name] = true
		return nil
	}
	at := ""
	for _, o := range open {
		at += "/" + escape(o.name)
	}
	p := api.Errorf(api.CodeMalformed, "a field is given twice")
	p.Errors = []api.FieldError{{Pointer: at, Code: api.CodeMalformed, Message: "is given twice"}}
	return p
}

// syntaxProblem words an error of encoding/json.
func syntaxProblem(err error, data []byte) error {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		p := api.Errorf(api.CodeInvalid, "the request has 1 invalid field(s)")
		p.Errors = []api.FieldError{{
			Pointer: "/" + strings.ReplaceAll(wrong.Field, ".", "/"), Code: api.CodeInvalid,
			Message: fmt.Sprintf("%s does not fit: it must be of type %s", wrong.Value, wrong.Type.Kind()),
		}}
		return p
	case errors.As(err, &syntax):
		line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		return api.Errorf(api.CodeMalformed, "the body is no JSON: %v, at byte %d (line %d)", err, syntax.Offset, line)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return api.Errorf(api.CodeMalformed, "the body is no JSON: it ends too early")
	}
	return api.Errorf(api.CodeMalformed, "the body can't be read: %v", err)
}

// pointer turns the validator's location ("spec.ports[0].mac") into a JSON pointer (RFC 6901). Names may hold dots, as
// labels do: the longest name that doc has is taken.
func pointer(location string, doc any) string {
	var out strings.Builder
	rest := location
	for rest != "" {
		rest = strings.TrimPrefix(rest, ".")
		switch v := doc.(type) {
		case []any:
			index, after, _ := strings.Cut(strings.TrimPrefix(rest, "["), "]")
			out.WriteString("/" + index)
			i, err := strconv.Atoi(index)
			if err != nil || i < 0 || i >= len(v) {
				return out.String()
			}
			doc, rest = v[i], after
		case map[string]any:
			name := longestName(rest, v)
			out.WriteString("/" + escape(name))
			doc, rest = v[name], rest[len(name):]
		default:
			out.WriteString("/" + escape(rest))
			return out.String()
		}
	}
	return out.String()
}

// longestName is the longest name of the object that rest begins with; all of rest where there is none.
func longestName(rest string, object map[string]any) string {
	best := ""
	for name := range object {
		after, ok := strings.CutPrefix(rest, name)
		if ok && len(name) > len(best) && (after == "" || after[0] == '.' || after[0] == '[') {
			best = name
		}
	}
	if best == "" {
		best = rest
	}
	return best
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

// escape writes a name as a part of a JSON pointer.
func escape(name string) string { return pointerEscaper.Replace(name) }

// readBody reads a JSON body of at most bodyLimit bytes.
func readBody(r *http.Request) ([]byte, error) {
	ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(ct)) {
	case "", "application/json", "application/merge-patch+json":
	default:
		return nil, api.Errorf(api.CodeMalformed, "the body is of type %q; send application/json", ct)
	}
	if r.ContentLength > bodyLimit {
		return nil, tooLarge()
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, bodyLimit+1))
	if err != nil {
		return nil, api.Errorf(api.CodeMalformed, "the body could not be read: %v", err)
	}
	if len(data) > bodyLimit {
		return nil, tooLarge()
	}
	return data, nil
}

func tooLarge() *api.Problem {
	return api.Errorf(api.CodeTooLarge, "the body is larger than 1 MiB")
}

// mergePatch applies an RFC 7396 merge patch to a document.
func mergePatch(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, ok := target.(map[string]any)
	if !ok {
		object = map[string]any{}
	}
	for name, value := range changes {
		if value == nil {
			delete(object, name)
			continue
		}
		object[name] = mergePatch(object[name], value)
	}
	return object
}
