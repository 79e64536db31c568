package local

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
)

// hostile is a registry whose answers below a path go on for ever, and tell no length.
type hostile struct {
	http.Handler
	endless string
	sent    atomic.Int64
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.endless == "" || !strings.Contains(r.URL.Path, h.endless) || r.Method != http.MethodGet {
		h.Handler.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
	for piece := make([]byte, 64<<10); ; {
		n, err := w.Write(piece)
		if h.sent.Add(int64(n)); err != nil {
			return
		}
	}
}

func TestRegistryTakesNoMemory(t *testing.T) {
	s, img := newStore(t), ociImage(t)
	for name, c := range map[string]struct {
		change  func(m *v1.Manifest)
		endless string
		want    string
	}{
		"configuration of 9 MiB":          {change: func(m *v1.Manifest) { m.Config.Size = 9 << 20 }, want: "its configuration has"},
		"configuration of any size":       {change: func(m *v1.Manifest) { m.Config.Size = -1 }, endless: "/blobs/", want: "its configuration has"},
		"configuration that goes on":      {endless: "/blobs/" + digestOf(t, img), want: ""},
		"manifest that goes on":           {endless: "/manifests/", want: "where it should describe the image"},
		"layers beyond the limit":         {change: func(m *v1.Manifest) { m.Layers[0].Size = 64 << 20 }, want: "limit"},
		"layers that overflow":            {change: func(m *v1.Manifest) { m.Layers[0].Size, m.Layers[1].Size = 1<<62, 1<<62 }, want: "limit"},
		"layer of no size":                {change: func(m *v1.Manifest) { m.Layers[0].Size = -1 }, want: "limit"},
		"configuration counts":            {change: func(m *v1.Manifest) { m.Layers[0].Size = int64(64*api.MiB) - m.Layers[1].Size }, want: "limit"},
		"more layers than anybody stacks": {change: func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers[:1], mostLayers+1) }, want: "layers"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hostile{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
			server := httptest.NewServer(h)
			t.Cleanup(server.Close)
			where := strings.TrimPrefix(server.URL, "http://") + "/app:1"
			push(t, where, img, c.change)
			h.endless = c.endless
			_, err := s.Import(t.Context(), image.Source{Registry: where, PlainHTTP: true, Limit: 64 * api.MiB}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.want != "" && !errors.Is(err, image.ErrBad) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			server.CloseClientConnections()
			// What lies in the buffers of the connection comes on top.
			if sent := api.Bytes(h.sent.Load()); sent > 3*largestDocument {
				t.Errorf("%v were taken", sent)
			}
			wantClean(t, s, 0)
		})
	}
}

func digestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.ConfigName()
	must(t, err)
	return d.String()
}

// push stores an image, with a manifest that may tell lies of it.
func push(t *testing.T, where string, img v1.Image, change func(*v1.Manifest)) {
	t.Helper()
	ref, err := name.ParseReference(where)
	must(t, err)
	must(t, remote.Write(ref, img))
	if change == nil {
		return
	}
	m, err := img.Manifest()
	must(t, err)
	m = m.DeepCopy()
	change(m)
	text, err := json.Marshal(m)
	must(t, err)
	must(t, remote.Put(ref, lyingManifest{text, m.MediaType}))
}

// lyingManifest is stored as it is.
type lyingManifest struct {
	text []byte
	kind types.MediaType
}

func (m lyingManifest) RawManifest() ([]byte, error) { return m.text, nil }

func (m lyingManifest) MediaType() (types.MediaType, error) { return m.kind, nil }
