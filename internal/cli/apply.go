package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// applied are the kinds of apply, in the order in which what they name must be there.
var applied = []struct {
	kind, plural string
	global       bool
}{
	{"Tenant", "tenants", true}, {"Host", "hosts", true}, {"Network", "networks", false}, {"Image", "images", false}, {"Server", "servers", false},
}

// document is one resource of a file.
type document struct {
	Kind   string            `json:"kind"`
	Name   string            `json:"name"`
	Tenant string            `json:"tenant"`
	Labels map[string]string `json:"labels"`
	Spec   json.RawMessage   `json:"spec"`
	file   string
	image  imageDocument
}

func (a *app) applyCommand() *cobra.Command {
	var files []string
	var wait waitFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Create or change what a file describes", Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Create or change what a file describes: YAML documents separated by ---, or JSON; also what show and list print. Each has kind\n" +
			"(Tenant, Host, Network, Image or Server), name, perhaps tenant and labels, and spec. What is there already gets the file's spec\n" +
			"and labels.\n\n" +
			"An image that is not there is made as its spec says: build: micro or debian-12, or registry: an OCI reference (plainHTTP: true\n" +
			"asks the registry over HTTP). It is waited for in any case, since servers need it. An image that is there is not made anew.",
		Example: "  croft apply -f shop.yaml\n  croft server show web -o yaml | sed s/web/web2/ | croft apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("-f is missing: give a file, or - for standard input")
			}
			docs, err := a.readDocuments(cmd, files)
			if err != nil {
				return err
			}
			for _, kind := range applied {
				for _, d := range docs {
					if d.Kind != kind.kind {
						continue
					}
					if kind.global {
						d.Tenant = ""
					}
					if err := a.apply(cmd, kind.plural, d, &wait); err != nil {
						return fmt.Errorf("%s %s (%s): %w", d.Kind, d.Name, d.file, err)
					}
				}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "file, or - for standard input; repeatable")
	wait.register(cmd)
	return cmd
}

// readDocuments reads all files before anything is changed.
func (a *app) readDocuments(cmd *cobra.Command, files []string) ([]document, error) {
	var docs []document
	for _, name := range files {
		var data []byte
		var err error
		if name == "-" {
			data, err = io.ReadAll(cmd.InOrStdin())
		} else {
			data, err = os.ReadFile(name)
		}
		if err != nil {
			return nil, err
		}
		d := yaml.NewDecoder(bytes.NewReader(data))
		for i := 1; ; i++ {
			var doc any
			err := d.Decode(&doc)
			if errors.Is(err, io.EOF) {
				break
			}
			where := fmt.Sprintf("%s, document %d", name, i)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", where, err)
			}
			if doc == nil {
				continue // nothing between two separators
			}
			listed, ok := doc.([]any) // as list prints them
			if !ok {
				listed = []any{doc}
			}
			for _, doc := range listed {
				parsed, err := a.document(doc, where)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", where, err)
				}
				docs = append(docs, parsed)
			}
		}
	}
	if len(docs) == 0 {
		return nil, errors.New("there is nothing in it to apply")
	}
	return docs, nil
}

func (a *app) document(doc any, where string) (document, error) {
	fields, ok := doc.(map[string]any)
	if !ok {
		return document{}, errors.New("is no resource: it must have kind, name and spec")
	}
	for _, own := range []string{"status", "id", "revision", "created"} {
		delete(fields, own) // what show printed may be applied again
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return document{}, err
	}
	d := document{file: where, Tenant: a.tenant}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return document{}, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if d.Name == "" {
		return document{}, errors.New("has no name")
	}
	if d.Kind == "" {
		return document{}, fmt.Errorf("%s has no kind: Tenant, Host, Network, Image or Server", d.Name)
	}
	if len(d.Spec) == 0 {
		d.Spec = json.RawMessage("{}")
	}
	if d.Kind == "Image" {
		if d.image, d.Spec, err = readImage(d.Spec); err != nil {
			return document{}, errors.New(strings.TrimPrefix(err.Error(), "json: "))
		}
	}
	for _, kind := range applied {
		if kind.kind == d.Kind {
			return d, nil
		}
	}
	return document{}, fmt.Errorf("kind %q is not known: Tenant, Host, Network, Image or Server", d.Kind)
}

// apply creates or changes one resource.
func (a *app) apply(cmd *cobra.Command, plural string, d document, wait *waitFlags) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	r := c.Any(d.Tenant, plural)
	var before, after api.Meta
	current, err := r.Get(cmd.Context(), d.Name)
	missing := client.IsNotFound(err)
	if err == nil {
		err = json.Unmarshal(*current, &before)
		missing = err == nil && before.Tenant != d.Tenant // a shared image is the operator's
	}
	var answer *json.RawMessage
	verb := "created"
	switch {
	case missing && d.Kind == "Image":
		answer, err = a.makeImage(cmd, c, d)
	case missing && d.Kind == "Host":
		return hinted{errors.New("there is no such host: a daemon makes its own when it starts"), "croft host list shows what there is"}
	case missing:
		answer, err = r.Create(cmd.Context(), client.Create[json.RawMessage]{Name: d.Name, Labels: d.Labels, Spec: d.Spec})
	case err == nil:
		verb = "changed"
		answer, err = r.Replace(cmd.Context(), d.Name, client.Update[json.RawMessage]{Labels: d.Labels, Spec: d.Spec, Revision: before.Revision})
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(*answer, &after); err != nil {
		return err
	}
	if before.ID == after.ID && before.Revision == after.Revision {
		verb = "unchanged"
	}
	if d.Kind == "Server" && verb != "unchanged" && wait.wanted(cmd) {
		return a.awaitApplied(cmd, current, answer, wait)
	}
	name := strings.ToLower(d.Kind) + "/" + d.Name
	if a.output != "table" {
		return a.printResource(cmd.OutOrStdout(), plural, answer)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, verb)
	return nil
}

// awaitApplied waits for a server that was created, where current is nil, or changed.
func (a *app) awaitApplied(cmd *cobra.Command, current, answer *json.RawMessage, wait *waitFlags) error {
	var before, after *api.Server
	if current != nil {
		if err := json.Unmarshal(*current, &before); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(*answer, &after); err != nil {
		return err
	}
	return a.newWaiter(cmd, after.Tenant, "server/"+after.Name).until(wait.timeout, after, stateGoal(before, after))
}
