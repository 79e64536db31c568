package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// style paints text where there is a terminal to show it, and NO_COLOR (no-color.org) does not forbid it.
type style bool

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
	dim    = "2"
)

func styleOf(w io.Writer) style {
	_, tty := terminal(w)
	return style(tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

func (s style) paint(colour, text string) string {
	if !s || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// phase paints a phase by how well it is.
func (s style) phase(phase string) string {
	switch phase {
	case "running", "ready", "active", "done":
		return s.paint(green, phase)
	case "failed", "away":
		return s.paint(red, phase)
	case "stopped":
		return s.paint(dim, phase)
	}
	return s.paint(yellow, phase)
}

// table aligns columns. Escape sequences take no room.
type table struct {
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	var b bytes.Buffer
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-width(cell)+2))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	w.Write(b.Bytes()) //nolint:errcheck // there is nobody to tell
}

// width is the room that a cell takes on a terminal.
func width(s string) int {
	n := 0
	for s != "" {
		if strings.HasPrefix(s, "\x1b[") {
			if end := strings.IndexByte(s, 'm'); end > 0 {
				s = s[end+1:]
				continue
			}
		}
		_, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		n++
	}
	return n
}

// now is what ages are counted from.
var now = time.Now

// age writes a span as people say it, to two digits or so.
func age(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	d := now().Sub(since)
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// print writes v as JSON or YAML: one document after the other, the YAML ones divided by "---".
func (a *app) print(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if a.output == "yaml" {
		if data, err = toYAML(data); err != nil {
			return err
		}
		if a.printed {
			data = append([]byte("---\n"), data...)
		}
		a.printed = true
		_, err = w.Write(data)
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// printResource writes a resource so that apply takes it again: with its kind.
func (a *app) printResource(w io.Writer, plural string, resource any) error {
	named, err := withKind(plural, resource)
	if err != nil {
		return err
	}
	return a.print(w, named)
}

// withKind is a resource as JSON, with its kind in front where it is one that apply knows.
func withKind(plural string, resource any) (json.RawMessage, error) {
	data, err := json.Marshal(resource)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	for _, kind := range applied {
		if kind.plural == plural {
			return slices.Concat([]byte(`{"kind":"`+kind.kind+`",`), data[1:]), nil
		}
	}
	return data, nil
}

// toYAML writes JSON as YAML, in the same order. JSON is YAML already; only its style changes.
func toYAML(data []byte) ([]byte, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return nil, fmt.Errorf("encode as YAML: %w", err)
	}
	plain(&node)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return nil, fmt.Errorf("encode as YAML: %w", err)
	}
	return b.Bytes(), e.Close()
}

func plain(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, child := range n.Content {
		plain(child)
	}
}

// fromYAML reads YAML, or JSON, as JSON.
func fromYAML(data []byte) ([]byte, error) {
	var doc any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// pairs are lines of "Key: value", aligned, for show.
type pairs struct {
	table
}

func (p *pairs) put(key, value string) {
	if value != "" {
		p.add(key+":", value)
	}
}

func labels(m map[string]string) string {
	var parts []string
	for _, key := range sortedKeys(m) {
		parts = append(parts, key+"="+m[key])
	}
	return strings.Join(parts, ",")
}
