package local

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
)

const (
	// largestDocument is more than any manifest or configuration takes. They are read into memory.
	largestDocument = 8 * api.MiB
	// mostLayers is more than overlay file systems take. Layers are fetched at once.
	mostLayers = 500
)

// errDocument says that a registry's manifest, index or token is too large.
var errDocument = fmt.Errorf("%w: the registry answers with more than %v where it should describe the image", image.ErrBad, largestDocument)

// checkManifest refuses an image that takes more memory or room than it may, and returns what it takes in all, compressed.
func checkManifest(m *v1.Manifest, limit api.Bytes) (total api.Bytes, err error) {
	// -1 would be read as "not known", and any size taken.
	if m.Config.Size < 0 || api.Bytes(m.Config.Size) > largestDocument {
		return 0, fmt.Errorf("%w: its configuration has %d bytes, and %v are taken", image.ErrBad, m.Config.Size, largestDocument)
	}
	if len(m.Layers) > mostLayers {
		return 0, fmt.Errorf("%w: it has %d layers, and %d are taken", image.ErrBad, len(m.Layers), mostLayers)
	}
	total = api.Bytes(m.Config.Size)
	for _, layer := range m.Layers {
		if size := api.Bytes(layer.Size); size < 0 || size > limit-total {
			return 0, fmt.Errorf("%w: it is larger than the limit of %v", image.ErrBad, limit)
		}
		total += api.Bytes(layer.Size)
	}
	return total, nil
}

// boundedTransport bounds what a registry can make its client read into memory: every answer but a blob, whose size the
// manifest tells.
type boundedTransport struct{ http.RoundTripper }

func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := t.RoundTripper.RoundTrip(r)
	if err != nil || isBlob(r) && answer.StatusCode < http.StatusBadRequest {
		return answer, err
	}
	if answer.ContentLength > int64(largestDocument) {
		answer.Body.Close()
		return nil, errDocument
	}
	answer.Body = &boundedBody{answer.Body, int64(largestDocument)}
	return answer, nil
}

// isBlob tells whether a blob was asked for; a registry may redirect that to anywhere.
func isBlob(r *http.Request) bool {
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return strings.Contains(r.URL.Path, "/blobs/")
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errDocument
	}
	return n, err
}
