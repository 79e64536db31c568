package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/croftproject/croft/internal/image"
)

// pull fetches an image from a registry as an OCI layout. Digests are verified on the way; nothing is unpacked.
func (s *Store) pull(ctx context.Context, src image.Source, dir string) (origin, error) {
	options := []name.Option{}
	if src.PlainHTTP {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(src.Registry, options...)
	if err != nil {
		return origin{}, fmt.Errorf("%w: %w", image.ErrBad, err)
	}
	found, err := remote.Image(ref, remote.WithContext(ctx), remote.WithTransport(boundedTransport{remote.DefaultTransport}),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	if err != nil {
		return origin{}, pullError(ref, err)
	}
	m, err := found.Manifest()
	if err != nil {
		return origin{}, pullError(ref, err)
	}
	total, err := checkManifest(m, src.Limit)
	if err != nil {
		return origin{}, err
	}
	room, err := s.room()
	if err != nil {
		return origin{}, err
	}
	if total > room.left() {
		return origin{}, room.lacks(total)
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return origin{}, err
	}
	if err := path.AppendImage(found); err != nil {
		return origin{}, pullError(ref, err)
	}
	sum, err := found.Digest()
	return origin{"manifest", sum.String()}, err
}

// pullError parts what the registry doesn't have from a registry that doesn't answer.
func pullError(ref name.Reference, err error) error {
	var answer *transport.Error
	if errors.As(err, &answer) && (answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden) {
		return fmt.Errorf("%w: the registry has no %s for us: %w", image.ErrBad, ref, err)
	}
	return fmt.Errorf("pull %s: %w", ref, err)
}
