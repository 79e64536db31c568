package unpack

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

// Files by which archives of layers are known.
const (
	layoutName = "oci-layout"    // OCI image-spec, image-layout.md
	indexName  = "index.json"    //
	dockerName = "manifest.json" // docker save
)

// descriptor points at a blob (OCI image-spec, descriptor.md).
type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"`
	Platform  *platform `json:"platform"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// manifest is an image's, or an index of them (manifest.md, image-index.md).
type manifest struct {
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// config is an image's configuration (config.md).
type config struct {
	platform
	Config struct {
		User       string
		Env        []string
		Entrypoint []string
		Cmd        []string
		WorkingDir string
	} `json:"config"`
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// layered is an image found in an archive: its configuration, and the files of its layers, lowest first.
type layered struct {
	config []byte
	layers []string
}

// deepestIndex bounds indexes that hold indexes.
const deepestIndex = 4

// largestJSON is more than any manifest or configuration takes.
const largestJSON = 8 << 20

// unpackOCI makes a tree of the image in an unpacked archive, and takes the archive away.
func unpackOCI(dir, archive string, job Job) (Result, error) {
	root, err := os.OpenRoot(archive)
	if err != nil {
		return Result{}, err
	}
	defer root.Close()
	found, err := findImage(root)
	if err != nil {
		return Result{}, err
	}
	var c config
	if err := json.Unmarshal(found.config, &c); err != nil {
		return Result{}, bad("its configuration is damaged: %v", err)
	}
	if len(c.RootFS.DiffIDs) != len(found.layers) || len(found.layers) == 0 {
		return Result{}, bad("it has %d layers, and its configuration names %d", len(found.layers), len(c.RootFS.DiffIDs))
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return Result{}, bad("it is for %s/%s; this host is linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	x, err := newExtractor(filepath.Join(dir, TreeName), followInside, job)
	if err != nil {
		return Result{}, err
	}
	defer x.close()
	x.whiteouts = true
	for i, layer := range found.layers {
		if err := x.layer(root, layer, c.RootFS.DiffIDs[i], job); err != nil {
			return Result{}, err
		}
	}
	return Result{Format: "oci", App: c.app()}, os.RemoveAll(archive)
}

// layer unpacks one layer and checks that it is the one that the configuration means.
func (x *extractor) layer(root *os.Root, name, diffID string, job Job) error {
	file, err := openRegular(root, name)
	if errors.Is(err, os.ErrNotExist) {
		return bad("its layer %s is missing", clip(name))
	}
	if err != nil {
		return err
	}
	defer file.Close()
	stream, err := decompress(file)
	if err != nil {
		return err
	}
	defer stream.Close()
	sum := sha256.New()
	bounded := bound(io.TeeReader(stream, sum), job)
	if err := x.extract(bounded); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return archiveError(err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return bad("its layer %s is damaged: the digest is %s", diffID, got)
	}
	return nil
}

func (c config) app() *api.App {
	app := &api.App{Entrypoint: c.Config.Entrypoint, Args: c.Config.Cmd, User: c.Config.User, WorkingDir: c.Config.WorkingDir}
	for _, entry := range c.Config.Env {
		name, value, ok := strings.Cut(entry, "=")
		if ok && name != "" {
			if app.Env == nil {
				app.Env = map[string]string{}
			}
			app.Env[name] = value
		}
	}
	return app
}

// findImage finds the image in an archive: an OCI layout, else what docker save writes.
func findImage(root *os.Root) (layered, error) {
	text, err := readJSON(root, indexName)
	if errors.Is(err, os.ErrNotExist) {
		return findDocker(root)
	}
	if err != nil {
		return layered{}, err
	}
	for range deepestIndex {
		var m manifest
		if err := json.Unmarshal(text, &m); err != nil {
			return layered{}, bad("its manifest is damaged: %v", err)
		}
		if len(m.Manifests) == 0 {
			return m.image(root)
		}
		one, err := choose(m.Manifests)
		if err != nil {
			return layered{}, err
		}
		if text, err = readBlob(root, one.Digest); err != nil {
			return layered{}, err
		}
	}
	return layered{}, bad("its indexes are nested too deep")
}

// choose picks the manifest of this host's platform.
func choose(manifests []descriptor) (descriptor, error) {
	for _, d := range manifests {
		if d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			return d, nil
		}
	}
	for _, d := range manifests {
		if d.Platform == nil {
			return d, nil
		}
	}
	return descriptor{}, bad("it holds no image for linux/%s", runtime.GOARCH)
}

func (m manifest) image(root *os.Root) (layered, error) {
	text, err := readBlob(root, m.Config.Digest)
	if err != nil {
		return layered{}, err
	}
	found := layered{config: text}
	for _, d := range m.Layers {
		name, err := blobName(d.Digest)
		if err != nil {
			return layered{}, err
		}
		found.layers = append(found.layers, name)
	}
	return found, nil
}

func findDocker(root *os.Root) (layered, error) {
	text, err := readJSON(root, dockerName)
	if errors.Is(err, os.ErrNotExist) {
		return layered{}, bad("it holds neither %s nor %s", indexName, dockerName)
	}
	if err != nil {
		return layered{}, err
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(text, &images); err != nil {
		return layered{}, bad("its manifest is damaged: %v", err)
	}
	if len(images) != 1 {
		return layered{}, bad("it holds %d images; save one at a time", len(images))
	}
	found := layered{layers: images[0].Layers}
	found.config, err = readJSON(root, images[0].Config)
	if errors.Is(err, os.ErrNotExist) {
		err = bad("its configuration is missing")
	}
	return found, err
}

// blobName is where a layout keeps a blob.
func blobName(digest string) (string, error) {
	hash, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hash) != 64 || strings.Trim(hash, "0123456789abcdef") != "" {
		return "", bad("it names a blob by the impossible digest %q", clip(digest))
	}
	return "blobs/sha256/" + hash, nil
}

// readBlob reads a small blob and checks its digest.
func readBlob(root *os.Root, digest string) ([]byte, error) {
	name, err := blobName(digest)
	if err != nil {
		return nil, err
	}
	text, err := readJSON(root, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, bad("its blob %s is missing", digest)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != digest {
		return nil, bad("its blob %s is damaged: the digest is %s", digest, got)
	}
	return text, nil
}

func readJSON(root *os.Root, name string) ([]byte, error) {
	file, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, largestJSON+1))
	if err == nil && len(text) > largestJSON {
		err = bad("its %s is too large", filepath.Base(name))
	}
	return text, err
}

// openRegular opens a file of the archive: not a FIFO, which would block.
func openRegular(root *os.Root, name string) (*os.File, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, bad("its file %q can't be read: %v", clip(name), err)
	}
	st, err := file.Stat()
	if err != nil || !st.Mode().IsRegular() {
		file.Close()
		return nil, bad("its file %q is no file", clip(name))
	}
	return file, nil
}
