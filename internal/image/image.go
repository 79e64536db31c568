// Package image imports, converts and builds images, and keeps their content once, by digest.
//
// Whatever a tenant uploads is parsed in a sandboxed, unprivileged child process with limits on size, time and memory:
// the daemon itself never unpacks.
package image

import (
	"context"
	"errors"
	"io"

	"github.com/croftproject/croft/api"
)

// ErrBad says that what was imported is no image, or damaged, or tries to reach outside itself. It is wrapped with the reason.
var ErrBad = errors.New("bad image")

// ErrNotFound says that there is no content of a digest.
var ErrNotFound = errors.New("no such image")

// GroupPrefix begins the names of the control groups, beside those of servers, in which uploads are parsed and images built.
const GroupPrefix = "sandbox-"

// Store keeps the content of images below one directory.
type Store interface {
	// Import reads an image in whatever form it has and keeps it; the same content is kept once. progress is told the step
	// and its percentage. On error nothing is left.
	Import(ctx context.Context, src Source, progress func(step string, percent int)) (Content, error)
	// Build makes one of the built-in images ("micro", "debian-12") from Debian's packages.
	Build(ctx context.Context, name string, progress func(step string, percent int)) (Content, error)
	// Get finds content by digest.
	Get(ctx context.Context, digest string) (Content, error)
	// Remove forgets content. It is idempotent.
	Remove(ctx context.Context, digest string) error
	// List names the digests there are.
	List(ctx context.Context) ([]string, error)
}

// Source is what to import: a stream, or a reference in an OCI registry.
type Source struct {
	Reader io.Reader // the upload, of any form: tar (root tree, OCI layout, docker save), gzip or zstd of it, qcow2, raw, ISO
	// Registry is an OCI reference ("registry.example/app:1"); with PlainHTTP it is asked over HTTP.
	Registry  string
	PlainHTTP bool
	// Limit is the most bytes that the image may unpack to.
	Limit api.Bytes
}

// Content is an image's content on this host. Paths are absolute, files in them are never written to, and an empty path
// means that the image has no such part.
type Content struct {
	Digest  string      `json:"digest"` // "sha256:…" of what it was made from
	Format  string      `json:"format"` // build, tree, qcow2, raw, iso, oci
	Size    api.Bytes   `json:"size"`   // space taken
	MinDisk api.Bytes   `json:"minDisk"`
	Models  []api.Model `json:"models"`

	Tree       string `json:"tree,omitempty"`       // root tree, for os
	RootFS     string `json:"rootfs,omitempty"`     // raw file system without partitions, for uml and microvm
	Disk       string `json:"disk,omitempty"`       // bootable disk, for full
	DiskFormat string `json:"diskFormat,omitempty"` // raw or qcow2
	ISO        string `json:"iso,omitempty"`
	Kernel     string `json:"kernel,omitempty"` // for microvm
	Initrd     string `json:"initrd,omitempty"`
	Cmdline    string `json:"cmdline,omitempty"`
	Modules    string `json:"modules,omitempty"` // modules tree of the UML kernel

	App       *api.App `json:"app,omitempty"`       // an application image's process
	CloudInit bool     `json:"cloudInit,omitempty"` // whether the image reads a NoCloud seed
	Ready     string   `json:"ready,omitempty"`     // what its console shows once userspace is up
}
