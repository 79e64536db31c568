package cli

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/croftproject/croft/api"
)

// edit changes fields given by --set, or opens the resource in an editor.
func (k *kind[T, S]) edit() *cobra.Command {
	var sets []string
	cmd := &cobra.Command{
		Use: "edit NAME", Short: "Change " + article(k.singular) + ", in $EDITOR or by --set", Args: exactly("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(sets) > 0 {
				return k.editSet(cmd, args[0], sets)
			}
			return k.editFile(cmd, args[0])
		},
	}
	cmd.Flags().StringArrayVar(&sets, "set", nil, "path=value, as cpu.cap=1500m or labels.tier=front; null is the default; repeatable")
	return cmd
}

func (k *kind[T, S]) editSet(cmd *cobra.Command, name string, sets []string) error {
	patch := map[string]any{}
	for _, set := range sets {
		path, text, ok := strings.Cut(set, "=")
		if !ok || path == "" {
			return usagef("--set %q is not path=value", set)
		}
		if err := setPath(patch, reflect.TypeFor[T](), path, text); err != nil {
			return err
		}
	}
	r, err := k.of()
	if err != nil {
		return err
	}
	t, err := r.Patch(cmd.Context(), name, patch, 0)
	if err != nil {
		return err
	}
	return k.done(cmd, t, name+": changed")
}

// setPath puts a value into a merge patch. Paths begin below spec, unless they begin with spec, labels or name.
func setPath(patch map[string]any, t reflect.Type, path, text string) error {
	parts := strings.Split(path, ".")
	switch parts[0] {
	case "spec", "name":
	case "labels":
		if name, ok := strings.CutPrefix(path, "labels."); ok {
			parts = []string{"labels", name} // labels may hold dots
		}
	default:
		parts = append([]string{"spec"}, parts...)
	}
	at := patch
	for i, part := range parts {
		t = memberType(t, part)
		if i == len(parts)-1 {
			value, err := typedValue(t, text)
			if err != nil {
				return usagef("--set %s: %v", path, err)
			}
			at[part] = value
			return nil
		}
		next, ok := at[part].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[part] = next
		}
		at = next
	}
	return nil
}

// memberType is the type of a member by its JSON name; nil where it is not known: the API then says so.
func memberType(t reflect.Type, name string) reflect.Type {
	if t == nil {
		return nil
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Map:
		return t.Elem()
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
				return f.Type
			}
		}
	}
	return nil
}

// typedValue reads a value as YAML, unless it is for a field that is text.
func typedValue(t reflect.Type, text string) (any, error) {
	if text == "null" {
		return nil, nil
	}
	if t != nil {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() == reflect.String || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			return text, nil
		}
	}
	var value any
	err := yaml.Unmarshal([]byte(text), &value)
	return value, err
}

func (k *kind[T, S]) editFile(cmd *cobra.Command, name string) error {
	r, err := k.of()
	if err != nil {
		return err
	}
	current, err := r.Get(cmd.Context(), name)
	if err != nil {
		return err
	}
	doc, err := encoded(current)
	if err != nil {
		return err
	}
	data, err := json.Marshal(struct {
		Name   any `json:"name"`
		Labels any `json:"labels,omitempty"`
		Spec   any `json:"spec"`
	}{doc["name"], doc["labels"], doc["spec"]})
	if err != nil {
		return err
	}
	text, err := toYAML(data)
	if err != nil {
		return err
	}
	head := fmt.Sprintf("# %s %s, revision %d. Save to apply; leave it unchanged to cancel.\n", k.singular, name, k.meta(current).Revision)
	var refused error
	for complaint := ""; ; {
		edited, err := openEditor(cmd, head+complaint+string(text))
		if err != nil {
			return err
		}
		if edited = stripComments(edited); bytes.Equal(edited, text) {
			if refused != nil {
				return refused
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: nothing changed\n", name)
			return nil
		}
		err = k.putEdited(cmd, name, edited, k.meta(current).Revision)
		var problem *api.Problem
		if err == nil || !errors.As(err, &problem) || !editable(problem.Code) {
			return err
		}
		complaint, text, refused = comment(problem), edited, err
	}
}

// editable tells whether the user can mend the problem in the text.
func editable(c api.Code) bool {
	switch c {
	case api.CodeInvalid, api.CodeMalformed, api.CodeUnknownField, api.CodeUnsupported, api.CodeCapacity, api.CodeQuota, api.CodeExists:
		return true
	}
	return false
}

func comment(p *api.Problem) string {
	text := "# error: " + p.Detail + "\n"
	for _, f := range p.Errors {
		text += "#   " + f.Pointer + ": " + f.Message + "\n"
	}
	return text
}

func (k *kind[T, S]) putEdited(cmd *cobra.Command, name string, text []byte, revision int64) error {
	data, err := fromYAML(text)
	if err != nil {
		return api.Errorf(api.CodeMalformed, "%v", err)
	}
	var body map[string]any
	if err := json.Unmarshal(data, &body); err != nil || body == nil { // nil: nothing is left of the text
		return api.Errorf(api.CodeMalformed, "it must have name and spec")
	}
	body["revision"] = revision
	c, err := k.client()
	if err != nil {
		return err
	}
	tenant := k.tenant
	if k.global {
		tenant = ""
	}
	answer, err := c.ReplaceRaw(cmd.Context(), tenant, k.plural, name, body)
	if err != nil {
		return err
	}
	t := new(T)
	if err := json.Unmarshal(answer, t); err != nil {
		return err
	}
	return k.done(cmd, t, name+": changed")
}

// openEditor lets the user edit a text.
func openEditor(cmd *cobra.Command, text string) ([]byte, error) {
	editor := strings.Fields(envOr("VISUAL", envOr("EDITOR", "vi")))
	f, err := os.CreateTemp("", "croft-*.yaml")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a leftover in the temporary directory does no harm
	if _, err := f.WriteString(text); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	e := exec.CommandContext(cmd.Context(), editor[0], append(editor[1:], f.Name())...)
	e.Stdin, e.Stdout, e.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := e.Run(); err != nil {
		return nil, hinted{fmt.Errorf("the editor %s failed: %w", editor[0], err), "set EDITOR, or change fields with --set path=value"}
	}
	return os.ReadFile(f.Name())
}

// stripComments drops the lines at the top that begin with '#'.
func stripComments(text []byte) []byte {
	for bytes.HasPrefix(text, []byte("#")) {
		_, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
	}
	return text
}
