package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
	"github.com/croftproject/croft/test/world"
)

// testImages imports images of each form but disks, and runs servers from them.
func testImages(t *testing.T, w *world.World) {
	t.Run("tree", func(t *testing.T) {
		t.Parallel()
		importBytes(t, w, "from-tree", treeTar(t, w))
		spec := small(api.ModelOS, "runc")
		spec.Image = "from-tree"
		w.Run(t, "image-tree", spec)
		w.Remove(t, "image-tree")
	})
	app := application(t)
	t.Run("docker save", func(t *testing.T) {
		t.Parallel()
		var archive bytes.Buffer
		tag, err := name.NewTag("example.test/app:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := tarball.Write(tag, app, &archive); err != nil {
			t.Fatal(err)
		}
		importBytes(t, w, "from-docker", archive.Bytes())
		testApplication(t, w, "from-docker")
	})
	t.Run("registry", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(server.Close)
		ref := strings.TrimPrefix(server.URL, "http://") + "/app:1"
		tag, err := name.NewTag(ref, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, app); err != nil {
			t.Fatal(err)
		}
		job, err := w.Client.Import(t.Context(), world.Tenant, client.Import{Name: "from-registry", Registry: ref, PlainHTTP: true})
		if err != nil {
			t.Fatal(err)
		}
		if job = w.Job(t, job); job.Status.Phase != api.JobDone {
			t.Fatalf("import: %s", job.Status.Error)
		}
		testEnding(t, w, "from-registry")
	})
}

func importBytes(t *testing.T, w *world.World, name string, data []byte) {
	t.Helper()
	job, err := w.Client.Import(t.Context(), world.Tenant, client.Import{Name: name, Body: bytes.NewReader(data), Size: int64(len(data))})
	if err != nil {
		t.Fatalf("import %s: %v", name, err)
	}
	if job = w.Job(t, job); job.Status.Phase != api.JobDone {
		t.Fatalf("import %s: %s", name, job.Status.Error)
	}
}

// treeTar is the tree of micro as an archive.
func treeTar(t *testing.T, w *world.World) []byte {
	t.Helper()
	trees, _ := filepath.Glob(filepath.Join(w.StateDir, "images", "*", "private", "tree", "sbin", "init"))
	if len(trees) == 0 {
		t.Fatal("micro has no tree")
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	if err := archive.AddFS(os.DirFS(filepath.Dir(filepath.Dir(trees[0])))); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// application is an OCI image of busybox that tells what it was started with.
func application(t *testing.T) v1.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("needs busybox-static: %v", err)
	}
	script := "#!/bin/busybox sh\necho args: $@\necho env: $GREETING $FROM\necho user: $(busybox id -u):$(busybox id -g)\necho dir: $(busybox pwd)\n" +
		"[ \"$1\" != end ] || exit ${2:-0}\nexec busybox httpd -f -p 8080\n"
	var layer bytes.Buffer
	out := tar.NewWriter(&layer)
	for _, f := range []struct {
		name, data string
		mode       int64
	}{{"bin/busybox", string(busybox), 0o755}, {"bin/app", script, 0o755}, {"srv/file", "x", 0o644},
		{"etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:1234:1234::/srv:/bin/sh\n", 0o644}, {"etc/group", "web:x:1234:\n", 0o644}} {
		if err := out.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(out, f.data)
	}
	for _, link := range []string{"sh", "cat"} {
		if err := out.WriteHeader(&tar.Header{Name: "bin/" + link, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "GREETING=hello", "FROM=image"},
		User: "web", WorkingDir: "/srv"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// testApplication runs the application with what the image says, and what the spec says over it.
func testApplication(t *testing.T, w *world.World, image string) {
	spec := onLAN(small(api.ModelOS, "runc"))
	spec.Image = image
	spec.App = &api.App{Env: map[string]string{"FROM": "spec"}}
	w.Create(t, "app", spec)
	w.Phase(t, "app", api.PhaseRunning)
	if code, out := w.Exec(t, "app", "/bin/busybox", "cat", "/proc/1/cmdline"); code != 0 {
		t.Errorf("exec beside the application: code %d, %s", code, out)
	}
	log := follow(t, w, "app", "dir:")
	for _, want := range []string{"args: serve", "env: hello spec", "user: 1234:1234", "dir: /srv"} {
		if !strings.Contains(log, want) {
			t.Errorf("the application's log lacks %q:\n%s", want, log)
		}
	}
	power(t, w, "app", api.PowerStop)
	w.Phase(t, "app", api.PhaseStopped)
	w.Remove(t, "app")
}

// follow reads a server's log until it holds a text.
func follow(t *testing.T, w *world.World, name, text string) string {
	t.Helper()
	log, err := w.Client.Log(t.Context(), world.Tenant, name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var all []byte
	buffer := make([]byte, 4096)
	for !strings.Contains(string(all), text) {
		n, err := log.Read(buffer)
		all = append(all, buffer[:n]...)
		if err != nil {
			t.Fatalf("the log ended without %q: %v\n%s", text, err, all)
		}
	}
	return string(all)
}

// testEnding runs an application that ends, with success and without.
func testEnding(t *testing.T, w *world.World, image string) {
	spec := small(api.ModelOS, "runc")
	spec.Image = image
	spec.App = &api.App{Args: []string{"end", "3"}}
	spec.Restart = api.RestartPolicy{Policy: api.RestartOnFailure, MaxRetries: 1}
	w.Create(t, "app-fails", spec)
	failed := w.Wait(t, "app-fails", "given up", func(s *api.Server) bool { return s.Status.Phase == api.PhaseFailed })
	if failed.Status.Exit == nil || failed.Status.Exit.Code != 3 {
		t.Errorf("it ended with %+v", failed.Status.Exit)
	}
	spec.App.Args = []string{"end", "0"}
	w.Create(t, "app-ends", spec)
	done := w.Wait(t, "app-ends", "done", func(s *api.Server) bool { return s.Status.Phase == api.PhaseStopped && s.Status.Exit != nil })
	if done.Status.Exit.Code != 0 || done.Status.Restarts != 0 {
		t.Errorf("it ended with %+v after %d restarts", done.Status.Exit, done.Status.Restarts)
	}
	w.Remove(t, "app-fails")
	w.Remove(t, "app-ends")
}
