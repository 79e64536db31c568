package unpack

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
)

// goodQcow2 is the header of an empty disk of 8 MiB, in a file of 256 KiB.
func goodQcow2(t testing.TB) []byte {
	t.Helper()
	h := qcow2Header{
		Magic: [4]byte(magicQcow2), Version: 3, ClusterBits: 16, Size: 8 << 20, L1Size: 1, L1Offset: 196608,
		RefcountOffset: 65536, RefcountClusters: 1, RefcountOrder: 4, Length: 104,
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.BigEndian, h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestQcow2Header(t *testing.T) {
	const size, limit = 256 << 10, api.GiB
	if virtual, err := checkQcow2(goodQcow2(t), size, limit); err != nil || virtual != 8*api.MiB {
		t.Fatalf("a good header: %v, %v", virtual, err)
	}
	put := binary.BigEndian
	for name, c := range map[string]struct {
		change func(h []byte)
		want   string
	}{
		"version":       {func(h []byte) { put.PutUint32(h[4:], 9) }, "version"},
		"backing":       {func(h []byte) { put.PutUint64(h[8:], 512) }, "backing"},
		"backing size":  {func(h []byte) { put.PutUint32(h[16:], 5) }, "backing"},
		"clusters":      {func(h []byte) { put.PutUint32(h[20:], 60) }, "impossible"},
		"absurd":        {func(h []byte) { put.PutUint64(h[24:], 1<<63) }, "absurd"},
		"zero":          {func(h []byte) { put.PutUint64(h[24:], 0) }, "absurd"},
		"limit":         {func(h []byte) { put.PutUint64(h[24:], 1<<40) }, "limit"},
		"encrypted":     {func(h []byte) { put.PutUint32(h[32:], 1) }, "encrypted"},
		"long table":    {func(h []byte) { put.PutUint32(h[36:], 1<<31) }, "table"},
		"short table":   {func(h []byte) { put.PutUint32(h[36:], 0) }, "table"},
		"table outside": {func(h []byte) { put.PutUint64(h[40:], size) }, "truncated"},
		"table wraps":   {func(h []byte) { put.PutUint64(h[40:], 1<<64-4) }, "truncated"},
		"refcounts":     {func(h []byte) { put.PutUint64(h[48:], 1<<40) }, "truncated"},
		"snapshots":     {func(h []byte) { put.PutUint32(h[60:], 1) }, "snapshots"},
		"corrupt":       {func(h []byte) { put.PutUint64(h[72:], 2) }, "corrupt"},
		"external":      {func(h []byte) { put.PutUint64(h[72:], 4) }, "external"},
		"unknown":       {func(h []byte) { put.PutUint64(h[72:], 1<<40) }, "unknown"},
		"short header":  {func(h []byte) { put.PutUint32(h[100:], 72) }, "header"},
	} {
		t.Run(name, func(t *testing.T) {
			h := goodQcow2(t)
			c.change(h)
			if _, err := checkQcow2(h, size, limit); !errors.As(err, new(badError)) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a reason with %q", err, c.want)
			}
		})
	}
}

func FuzzQcow2Header(f *testing.F) {
	f.Add(goodQcow2(f), int64(256<<10))
	f.Add(goodQcow2(f)[:72], int64(72))
	f.Fuzz(func(t *testing.T, head []byte, size int64) {
		const limit = api.TiB
		virtual, err := checkQcow2(head, max(size, 0), limit)
		if err != nil && !errors.As(err, new(badError)) {
			t.Errorf("a reason was expected: %v", err)
		}
		if err == nil && (virtual <= 0 || virtual > limit) {
			t.Errorf("a disk of %d bytes was taken", virtual)
		}
	})
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte{})
	f.Add(goodQcow2(f))
	f.Add(append(make([]byte, 510), 0x55, 0xaa))
	f.Add(append(make([]byte, 512), "EFI PART"...))
	f.Add(append(make([]byte, 32769), "CD001"...))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		kind, err := sniff(r, r.Size())
		switch {
		case err != nil:
		case kind == kindRaw:
			err = checkRaw(r, r.Size())
		case kind == kindISO:
			err = checkISO(r, r.Size())
		}
		if err != nil && !errors.As(err, new(badError)) {
			t.Errorf("a reason was expected: %v", err)
		}
	})
}

// FuzzTree unpacks archives whose names and links the fuzzer chooses; nothing may appear beside the tree.
func FuzzTree(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("giving files away needs root")
	}
	f.Add("a/b", "../../x", byte(tar.TypeSymlink), "a/b/c")
	f.Add("a", "/", byte(tar.TypeSymlink), "a/x")
	f.Add("a", "../x", byte(tar.TypeLink), "b")
	f.Add("./", "", byte(tar.TypeDir), "../x")
	f.Fuzz(func(t *testing.T, first, link string, kind byte, second string) {
		if kind == tar.TypeChar || kind == tar.TypeBlock {
			kind = tar.TypeReg
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range []*tar.Header{
			{Name: first, Linkname: link, Typeflag: kind, Mode: 0o700},
			{Name: second, Typeflag: tar.TypeReg, Mode: 0o600},
		} {
			if w.WriteHeader(h) != nil {
				t.Skip("tar can't write this")
			}
		}
		if w.Close() != nil {
			t.Skip("tar can't write this")
		}
		for _, how := range []links{refuseLinks, followInside} {
			outer := t.TempDir()
			x, err := newExtractor(filepath.Join(outer, "in", "tree"), how, Job{Limit: api.MiB, Room: api.MiB, Files: 10})
			if err != nil {
				t.Fatal(err)
			}
			x.whiteouts = how == followInside
			_ = x.extract(bytes.NewReader(b.Bytes()))
			x.close()
			for _, dir := range []string{outer, filepath.Join(outer, "in")} {
				if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
					t.Errorf("%s holds %v, %v", dir, entries, err)
				}
			}
		}
	})
}
