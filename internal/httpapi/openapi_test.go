package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
)

// The OpenAPI document is checked for what generators stumble over: references that lead nowhere, operations without an
// id or an answer, path parameters that are not declared, and schema types that don't exist.
func TestOpenAPI(t *testing.T) {
	l := serve(t, nil)
	_, text := l.want(200, "GET", "/v1/openapi.json", "")
	var doc struct {
		OpenAPI    string
		Info       struct{ Title, Version string }
		Paths      map[string]map[string]map[string]any
		Components struct{ Schemas map[string]map[string]any }
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" || doc.Info.Title == "" || doc.Info.Version == "" {
		t.Errorf("head: %s %+v", doc.OpenAPI, doc.Info)
	}
	ids := map[string]bool{}
	for path, item := range doc.Paths {
		for method, op := range item {
			where := method + " " + path
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] {
				t.Errorf("%s: operationId %q is missing or there twice", where, id)
			}
			ids[id] = true
			answers, _ := op["responses"].(map[string]any)
			if len(answers) == 0 {
				t.Errorf("%s has no responses", where)
			}
			if method == "put" || method == "patch" || id == "create-server" {
				if op["requestBody"] == nil {
					t.Errorf("%s has no body", where)
				}
			}
			checkParameters(t, where, path, op)
		}
	}
	var whole any
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatal(err)
	}
	checkSchemas(t, "", whole, doc.Components.Schemas)
	for _, id := range []string{"list-servers", "list-all-servers", "exec-server", "import-image", "power-server", "list-events", "get-debug-bundle"} {
		if !ids[id] {
			t.Errorf("there is no operation %s", id)
		}
	}
	for pointer, want := range map[string]string{
		"ServerSpec/properties/model/enum":       `["full","para","os"]`,
		"ServerSpec/properties/pids/default":     `4096`,
		"ServerSpec/properties/stopTimeout":      `{"$ref":"#/components/schemas/Duration","default":"30s","description":"How long`,
		"Memory/properties/limit":                `{"$ref":"#/components/schemas/Bytes","default":"512MiB"`,
		"Bytes/anyOf":                            `[{"pattern":`,
		"ServerSpec/properties/model":            `"description":"How the server`,
		"CreateServerSpec/additionalProperties":  `false`,
		"PageServer/properties/items/items/$ref": `"#/components/schemas/Server"`,
		"ServerSpec/required":                    `["model","image"]`,
	} {
		var at any = map[string]any(nil)
		parts := strings.Split(pointer, "/")
		at = doc.Components.Schemas[parts[0]]
		for _, part := range parts[1:] {
			object, _ := at.(map[string]any)
			at = object[part]
		}
		if got, _ := json.Marshal(at); !strings.Contains(string(got), want) {
			t.Errorf("%s is %s, want %s", pointer, got, want)
		}
	}
}

var pathParameter = regexp.MustCompile(`\{(\w+)\}`)

func checkParameters(t *testing.T, where, path string, op map[string]any) {
	declared := map[string]bool{}
	list, _ := op["parameters"].([]any)
	for _, p := range list {
		p, _ := p.(map[string]any)
		name, _ := p["name"].(string)
		if p["in"] == "path" {
			declared[name] = true
			if p["required"] != true {
				t.Errorf("%s: path parameter %s is not required", where, name)
			}
		}
		if p["schema"] == nil {
			t.Errorf("%s: parameter %s has no schema", where, name)
		}
	}
	for _, match := range pathParameter.FindAllStringSubmatch(path, -1) {
		if !declared[match[1]] {
			t.Errorf("%s: path parameter %s is not declared", where, match[1])
		}
	}
}

func checkSchemas(t *testing.T, at string, node any, schemas map[string]map[string]any) {
	types := []string{"object", "array", "string", "number", "integer", "boolean", "null"}
	switch node := node.(type) {
	case map[string]any:
		if ref, ok := node["$ref"].(string); ok {
			if schemas[strings.TrimPrefix(ref, "#/components/schemas/")] == nil {
				t.Errorf("%s refers to %s, which is not there", at, ref)
			}
		}
		if kind, ok := node["type"].(string); ok && !strings.HasSuffix(at, "/properties") && !slices.Contains(types, kind) {
			t.Errorf("%s has the type %q", at, kind)
		}
		for name, child := range node {
			checkSchemas(t, at+"/"+name, child, schemas)
		}
	case []any:
		for i, child := range node {
			checkSchemas(t, fmt.Sprint(at, "/", i), child, schemas)
		}
	}
}

// pages answers lists with items that are encoded already, as the control plane does.
type pages struct {
	httpapi.Control
	raw httpapi.Raw
}

type pagedServers struct {
	httpapi.Resources[api.Server, api.ServerSpec]
	raw httpapi.Raw
}

func (p pages) Servers() httpapi.Resources[api.Server, api.ServerSpec] {
	return pagedServers{p.Control.Servers(), p.raw}
}

func (p pagedServers) List(context.Context, httpapi.Caller, string, httpapi.ListOptions) (httpapi.Raw, error) {
	return p.raw, nil
}
