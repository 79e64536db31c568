package local

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/image/unpack"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == unpack.Command {
		os.Exit(unpack.Main(os.Args[2:]))
	}
	if len(os.Args) > 3 && os.Args[1] == buildCommand {
		os.Exit(buildForEver(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func newStore(t *testing.T) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("the sandbox's mounts need root")
	}
	s, err := New(Options{Dir: filepath.Join(t.TempDir(), "images"), CacheDir: t.TempDir()})
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry of an archive; the zero type is a regular file.
type entry struct {
	name, data, link string
	kind             byte
	mode             int64
	uid              int
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o755
		}
		must(t, w.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.uid, Size: int64(len(e.data))}))
		_, err := w.Write([]byte(e.data))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func rootTree(t testing.TB) []byte {
	return archive(t,
		entry{name: "./", kind: tar.TypeDir},
		entry{name: "./etc/", kind: tar.TypeDir, mode: 0o750, uid: 3},
		entry{name: "./etc/hostname", data: "here\n", mode: 0o640, uid: 1000},
		entry{name: "./bin", kind: tar.TypeSymlink, link: "/usr/bin"},
		entry{name: "./usr/bin/su", data: "su", mode: 0o4755},
		entry{name: "./usr/bin/sudo", kind: tar.TypeLink, link: "./usr/bin/su"},
		entry{name: "./escape", kind: tar.TypeSymlink, link: "../../../etc/passwd"},
	)
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(data, nil)
}

func importBytes(t *testing.T, s *Store, data []byte) (image.Content, error) {
	t.Helper()
	return s.Import(t.Context(), image.Source{Reader: bytes.NewReader(data), Limit: 64 * api.MiB}, nil)
}

// wantClean checks that the store holds count images and nothing else.
func wantClean(t *testing.T, s *Store, count int) {
	t.Helper()
	entries, err := os.ReadDir(s.o.Dir)
	must(t, err)
	if len(entries) != count {
		t.Errorf("the store holds %v, want %d images", entries, count)
	}
}

func TestImportTree(t *testing.T) {
	s, plain := newStore(t), rootTree(t)
	for form, data := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": zstandard(t, plain)} {
		t.Run(form, func(t *testing.T) {
			c, err := importBytes(t, s, data)
			must(t, err)
			checkTree(t, c)
			again, err := importBytes(t, s, data)
			must(t, err)
			if again.Digest != c.Digest {
				t.Errorf("digest %s differs from %s of the same upload", again.Digest, c.Digest)
			}
			wantClean(t, s, 1)
			must(t, s.Remove(t.Context(), c.Digest))
			must(t, s.Remove(t.Context(), c.Digest))
			if _, err := s.Get(t.Context(), c.Digest); !errors.Is(err, image.ErrNotFound) {
				t.Errorf("get after remove: %v", err)
			}
			wantClean(t, s, 0)
		})
	}
}

func checkTree(t *testing.T, c image.Content) {
	t.Helper()
	if diff := cmp.Diff([]api.Model{api.ModelOS}, c.Models); diff != "" || c.Format != "tree" {
		t.Errorf("format %s, models differ: %s", c.Format, diff)
	}
	for name, want := range map[string]struct{ mode, owner uint32 }{
		"": {unix.S_IFDIR | 0o755, 0}, "etc": {unix.S_IFDIR | 0o750, 3}, "etc/hostname": {unix.S_IFREG | 0o640, 1000},
		"bin": {unix.S_IFLNK | 0o777, 0}, "usr/bin/su": {unix.S_IFREG | 0o4755, 0}, "usr/bin/sudo": {unix.S_IFREG | 0o4755, 0},
	} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(c.Tree, name), &st))
		if st.Mode != want.mode || st.Uid != want.owner || st.Gid != want.owner {
			t.Errorf("%q has mode %o, owner %d:%d; want %o, %d", name, st.Mode, st.Uid, st.Gid, want.mode, want.owner)
		}
	}
	st, err := os.Stat(filepath.Dir(c.Tree))
	must(t, err)
	if st.Mode().Perm() != 0o700 {
		t.Errorf("the directory above the tree has mode %o: others reach its setuid files", st.Mode().Perm())
	}
}

func TestImportRefuses(t *testing.T) {
	s := newStore(t)
	dir := entry{name: "d", kind: tar.TypeDir}
	tree := rootTree(t)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":               {nil, "empty"},
		"text":                {[]byte(strings.Repeat("no image\n", 1000)), "no image of a known form"},
		"vmdk":                {[]byte("KDMV" + strings.Repeat("\x00", 600)), "VMDK"},
		"gzip of text":        {gzipped(t, []byte(strings.Repeat("text", 1000))), "damaged"},
		"empty tar":           {gzipped(t, archive(t)), "nothing in it"},
		"dot dot":             {archive(t, entry{name: "../evil", data: "x"}), `".."`},
		"dot dot inside":      {archive(t, entry{name: "a/../../evil", data: "x"}), `".."`},
		"absolute":            {archive(t, entry{name: "/etc/passwd", data: "x"}), "absolute"},
		"through link":        {archive(t, entry{name: "l", kind: tar.TypeSymlink, link: "/etc"}, entry{name: "l/x", data: "x"}), "symbolic link"},
		"through inner link":  {archive(t, dir, entry{name: "l", kind: tar.TypeSymlink, link: "d"}, entry{name: "l/x", data: "x"}), "symbolic link"},
		"through file":        {archive(t, entry{name: "f", data: "x"}, entry{name: "f/x", data: "x"}), "no directory"},
		"hard link outside":   {archive(t, entry{name: "h", kind: tar.TypeLink, link: "../../../etc/passwd"}), "hard link"},
		"hard link absolute":  {archive(t, entry{name: "h", kind: tar.TypeLink, link: "/etc/shadow"}), "not there"},
		"hard link to dir":    {archive(t, dir, entry{name: "h", kind: tar.TypeLink, link: "d"}), "hard link to a directory"},
		"link over hard link": {archive(t, entry{name: "l", kind: tar.TypeSymlink, link: "/etc"}, entry{name: "h", kind: tar.TypeLink, link: "l/passwd"}), "symbolic link"},
		"device":              {archive(t, entry{name: "dev/sda", kind: tar.TypeBlock}), "device node"},
		"character device":    {archive(t, entry{name: "dev/mem", kind: tar.TypeChar}), "device node"},
		"file over directory": {archive(t, dir, entry{name: "d/x", data: "x"}, entry{name: "d", data: "x"}), "place of a directory"},
		"root is a file":      {archive(t, entry{name: ".", data: "x"}), "root directory"},
		"foreign owner":       {archive(t, entry{name: "f", uid: 70000}), "owner"},
		"truncated":           {tree[:len(tree)/2+100], "truncated"},
		"truncated gzip":      {gzipped(t, tree)[:150], "truncated"},
		"bomb":                {gzipped(t, archive(t, entry{name: "zeros", data: strings.Repeat("\x00", 70<<20)})), "limit"},
		"stream bomb":         {gzipped(t, append(archive(t, dir), make([]byte, 80<<20)...)), ""},
		"larger than limit":   {append([]byte("XFSB"), make([]byte, 65<<20)...), "limit"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := importBytes(t, s, c.data)
			if c.want == "" {
				must(t, err) // trailing zeros are allowed up to the archive's own room
				must(t, s.Remove(t.Context(), mustList(t, s)[0]))
			} else if !errors.Is(err, image.ErrBad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a bad image for %q", err, c.want)
			}
			wantClean(t, s, 0)
		})
	}
}

func mustList(t *testing.T, s *Store) []string {
	t.Helper()
	list, err := s.List(t.Context())
	must(t, err)
	return list
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

func TestImportDisks(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	disk := make([]byte, 4<<20)
	copy(disk[510:], "\x55\xaa")
	copy(disk[3<<20:], "data")
	raw := filepath.Join(dir, "disk.raw")
	must(t, os.WriteFile(raw, disk, 0o600))
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, filepath.Join(dir, "disk.qcow2"))
	iso := make([]byte, 20*2048)
	copy(iso[32769:], "CD001")
	iso[16*2048+80], iso[16*2048+129] = 20, 8

	c, err := importBytes(t, s, disk)
	must(t, err)
	if c.Format != "raw" || c.DiskFormat != "raw" || c.MinDisk != 4*api.MiB || !bytes.Equal(read(t, c.Disk), disk) {
		t.Errorf("raw is %+v", c)
	}
	c, err = importBytes(t, s, read(t, filepath.Join(dir, "disk.qcow2")))
	must(t, err)
	back := filepath.Join(dir, "back.raw")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", c.Disk, back)
	if c.Format != "qcow2" || c.DiskFormat != "qcow2" || c.MinDisk != 4*api.MiB || !bytes.Equal(read(t, back), disk) {
		t.Errorf("qcow2 is %+v", c)
	}
	c, err = importBytes(t, s, iso)
	must(t, err)
	if c.Format != "iso" || c.ISO == "" || c.Disk != "" || !bytes.Equal(read(t, c.ISO), iso) {
		t.Errorf("iso is %+v", c)
	}
	wantClean(t, s, 3)
}

func TestImportRefusesDisks(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	qemuImg(t, "create", "-q", "-f", "raw", path("base"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", path("backed"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+path("data")+",data_file_raw=on", path("external"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", path("huge"), "1T")
	qemuImg(t, "create", "-q", "-f", "qcow2", path("good"), "8M")
	good := read(t, path("good"))
	damaged := bytes.Clone(good)
	for i := range 64 { // the refcount table
		damaged[65536+i] = 0xff
	}
	gpt := make([]byte, 4096)
	copy(gpt[512:], "EFI PART")
	gpt[512+33] = 1
	iso := make([]byte, 17*2048)
	copy(iso[32769:], "CD001")
	iso[16*2048+80], iso[16*2048+129] = 200, 8
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"backing file":    {read(t, path("backed")), "backing file"},
		"external data":   {read(t, path("external")), "external data file"},
		"too large":       {read(t, path("huge")), "limit"},
		"only a header":   {good[:80], "header is truncated"},
		"truncated":       {good[:70000], "truncated"},
		"damaged":         {damaged, "damaged"},
		"truncated gpt":   {gpt, "truncated"},
		"truncated iso":   {iso, "truncated"},
		"absurd size":     {append(append(bytes.Clone(good[:24]), 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), good[32:]...), "absurd"},
		"cluster too big": {append(append(bytes.Clone(good[:20]), 0, 0, 0, 63), good[24:]...), "impossible"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := importBytes(t, s, c.data)
			if !errors.Is(err, image.ErrBad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a bad image for %q", err, c.want)
			}
			wantClean(t, s, 0)
		})
	}
}

func ociImage(t testing.TB) v1.Image {
	t.Helper()
	layer := func(entries ...entry) mutate.Addendum {
		data := archive(t, entries...)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		must(t, err)
		return mutate.Addendum{Layer: l}
	}
	img, err := mutate.Append(empty.Image,
		layer(entry{name: "usr/lib/", kind: tar.TypeDir}, entry{name: "lib", kind: tar.TypeSymlink, link: "/usr/lib"},
			entry{name: "etc/gone", data: "x"}, entry{name: "etc/old/a", data: "x"}, entry{name: "etc/kept", data: "x"}),
		layer(entry{name: "lib/new", data: "x"}, entry{name: "etc/.wh.gone"}, entry{name: "etc/old/.wh..wh..opq"}, entry{name: "etc/old/b", data: "x"}),
	)
	must(t, err)
	cf, err := img.ConfigFile()
	must(t, err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config = v1.Config{Entrypoint: []string{"/app"}, Cmd: []string{"-v"}, Env: []string{"A=1=2"}, User: "7:8", WorkingDir: "/srv"}
	img, err = mutate.ConfigFile(img, cf)
	must(t, err)
	return img
}

func checkOCI(t *testing.T, c image.Content, err error) {
	t.Helper()
	must(t, err)
	want := &api.App{Entrypoint: []string{"/app"}, Args: []string{"-v"}, Env: map[string]string{"A": "1=2"}, User: "7:8", WorkingDir: "/srv"}
	if diff := cmp.Diff(want, c.App); diff != "" || c.Format != "oci" {
		t.Errorf("format %s, app differs: %s", c.Format, diff)
	}
	for name, there := range map[string]bool{"usr/lib/new": true, "etc/gone": false, "etc/old/a": false, "etc/old/b": true, "etc/kept": true} {
		if _, err := os.Lstat(filepath.Join(c.Tree, name)); (err == nil) != there {
			t.Errorf("%s: %v, want there %v", name, err, there)
		}
	}
}

// tarOf packs a directory.
func tarOf(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, w.Close())
	return b.Bytes()
}

func TestImportOCI(t *testing.T) {
	s, img := newStore(t), ociImage(t)
	t.Run("layout", func(t *testing.T) {
		dir := t.TempDir()
		p, err := layout.Write(dir, empty.Index)
		must(t, err)
		must(t, p.AppendImage(img))
		c, err := importBytes(t, s, tarOf(t, dir))
		checkOCI(t, c, err)
	})
	t.Run("docker save", func(t *testing.T) {
		var b bytes.Buffer
		tag, err := name.NewTag("app:1")
		must(t, err)
		must(t, tarball.Write(tag, img, &b))
		c, err := importBytes(t, s, b.Bytes())
		checkOCI(t, c, err)
	})
	t.Run("registry", func(t *testing.T) {
		server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(server.Close)
		where := strings.TrimPrefix(server.URL, "http://") + "/app:1"
		ref, err := name.ParseReference(where)
		must(t, err)
		must(t, remote.Write(ref, img))
		c, err := s.Import(t.Context(), image.Source{Registry: where, PlainHTTP: true, Limit: 64 * api.MiB}, nil)
		checkOCI(t, c, err)
		again, err := s.Import(t.Context(), image.Source{Registry: where, PlainHTTP: true, Limit: 64 * api.MiB}, nil)
		must(t, err)
		if again.Digest != c.Digest {
			t.Errorf("digest %s differs from %s of the same manifest", again.Digest, c.Digest)
		}
		_, err = s.Import(t.Context(), image.Source{Registry: where + "0", PlainHTTP: true, Limit: 64 * api.MiB}, nil)
		if !errors.Is(err, image.ErrBad) {
			t.Errorf("an image that the registry lacks: %v", err)
		}
	})
	t.Run("damaged layer", func(t *testing.T) {
		dir := t.TempDir()
		p, err := layout.Write(dir, empty.Index)
		must(t, err)
		must(t, p.AppendImage(img))
		layers, err := img.Layers()
		must(t, err)
		digest, err := layers[0].Digest()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", digest.Hex), rootTree(t), 0o644))
		if _, err := importBytes(t, s, tarOf(t, dir)); !errors.Is(err, image.ErrBad) {
			t.Errorf("a damaged layer: %v", err)
		}
	})
	wantClean(t, s, 3)
}

func TestImportSameAtOnce(t *testing.T) {
	s, data := newStore(t), rootTree(t)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if _, err := s.Import(t.Context(), image.Source{Reader: bytes.NewReader(data)}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	wantClean(t, s, 1)
}

func TestImportEndsWithSource(t *testing.T) {
	s := newStore(t)
	broken := io.MultiReader(bytes.NewReader(rootTree(t)[:600]), iotestErr{errors.New("connection reset")})
	if _, err := s.Import(t.Context(), image.Source{Reader: broken}, nil); err == nil || errors.Is(err, image.ErrBad) {
		t.Errorf("a broken upload: %v", err)
	}
	wantClean(t, s, 0)
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

// A file system of 24 MiB fills up while the upload arrives, or while it is unpacked.
func TestImportOnFullDisk(t *testing.T) {
	newStore(t)
	dir := t.TempDir()
	must(t, unix.Mount("full", dir, "tmpfs", 0, "size=24m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	s, err := New(Options{Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache")})
	must(t, err)
	big := archive(t, entry{name: "big", data: strings.Repeat("x", 40<<20)})
	for name, data := range map[string][]byte{"receiving": big, "unpacking": gzipped(t, big)} {
		_, err := importBytes(t, s, data)
		if !errors.Is(err, unix.ENOSPC) || errors.Is(err, image.ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
		wantClean(t, s, 0)
	}
}

func TestStartSweeps(t *testing.T) {
	s := newStore(t)
	for i := range 3 {
		must(t, os.MkdirAll(filepath.Join(s.o.Dir, makingPrefix+fmt.Sprint(i), "private"), 0o700))
	}
	_, err := New(s.o)
	must(t, err)
	wantClean(t, s, 0)
}
