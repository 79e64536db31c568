package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// imageDocument is the spec of an image in a file: the API's, and how the image is made where it is not there yet.
type imageDocument struct {
	api.ImageSpec
	Build     string `json:"build"`
	Registry  string `json:"registry"`
	PlainHTTP bool   `json:"plainHTTP"`
}

// readImage takes out of a spec what only tells how the image is made.
func readImage(spec json.RawMessage) (i imageDocument, rest json.RawMessage, err error) {
	d := json.NewDecoder(bytes.NewReader(spec))
	d.DisallowUnknownFields()
	if err := d.Decode(&i); err != nil {
		return i, nil, err
	}
	if i.Build != "" && i.Registry != "" {
		return i, nil, errors.New("spec has build and registry: an image is made in one way")
	}
	rest, err = json.Marshal(i.ImageSpec)
	return i, rest, err
}

// makeImage builds or imports an image that is not there yet, and returns it once it is.
func (a *app) makeImage(cmd *cobra.Command, c *client.Client, d document) (*json.RawMessage, error) {
	var job *api.Job
	var err error
	ctx, line, done := cmd.Context(), a.progressLine(cmd, "image/"+d.Name), "built"
	switch i := d.image; {
	case i.Build != "":
		line.say("building")
		job, err = c.Build(ctx, d.Tenant, d.Name, i.Build, i.Shared)
	case i.Registry != "":
		line.say("importing")
		done = "imported"
		job, err = c.Import(ctx, d.Tenant, client.Import{Name: d.Name, Shared: i.Shared, Labels: d.Labels, Registry: i.Registry, PlainHTTP: i.PlainHTTP})
	default:
		return nil, hinted{
			fmt.Errorf("tenant %s has no such image of its own, and its spec does not tell how to make it", d.Tenant),
			"give it build (micro or debian-12) or registry (an OCI reference); a file is imported with: croft image import NAME FILE",
		}
	}
	if err != nil {
		line.end()
		return nil, err
	}
	if _, err := a.awaitJob(cmd, d.Tenant, job, line, done); err != nil {
		return nil, err
	}
	image, err := c.Images(d.Tenant).Get(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	r := c.Any(d.Tenant, "images")
	if image.Spec == d.image.ImageSpec && maps.Equal(image.Labels, d.Labels) {
		return r.Get(ctx, d.Name)
	}
	return r.Replace(ctx, d.Name, client.Update[json.RawMessage]{Labels: d.Labels, Spec: d.Spec, Revision: image.Revision})
}
