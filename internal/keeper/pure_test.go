package keeper

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// A marker is found wherever reads cut the stream.
func TestMarker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letter := rapid.SampledFrom([]byte("ab"))
		text := rapid.SliceOfN(letter, 1, 5).Draw(t, "text")
		stream := rapid.SliceOfN(letter, 0, 30).Draw(t, "stream")
		m, saw := marker{text: text}, false
		for rest := stream; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "read")
			saw = saw || m.saw(rest[:n])
			rest = rest[n:]
		}
		if want := bytes.Contains(stream, text); saw != want {
			t.Fatalf("%q in %q: %v", text, stream, saw)
		}
	})
}

func TestFrames(t *testing.T) {
	stream := bytes.NewReader(appendFrame(appendFrame(nil, frameInput, []byte("ls\n")), frameResize, []byte{0, 24, 0, 80}))
	buf := make([]byte, frameMax)
	for _, want := range []struct {
		kind    byte
		payload string
	}{{frameInput, "ls\n"}, {frameResize, "\x00\x18\x00\x50"}} {
		kind, payload, err := readFrame(stream, buf)
		if err != nil || kind != want.kind || string(payload) != want.payload {
			t.Errorf("frame %d %q, %v", kind, payload, err)
		}
	}
	if _, _, err := readFrame(bytes.NewReader([]byte{0, 0xff, 0xff}), buf); err == nil {
		t.Error("a frame beyond the limit was taken")
	}
}

// The end of a process is never taken for that of another with the same pid.
func TestReaperTellsPidsApart(t *testing.T) {
	r := newReaper()
	other := r.begin()
	r.clock++
	r.unknown[1<<30] = end{r.clock, 0} // reaped before the next start
	start := r.begin()
	if r.watch(1<<30, start, func(unix.WaitStatus) { t.Error("got the end of an earlier process") }) {
		t.Error("watches a process that is not there")
	}
	r.clock++
	r.unknown[1<<30] = end{r.clock, 7 << 8}
	got := make(chan unix.WaitStatus, 1)
	if !r.watch(1<<30, start, func(w unix.WaitStatus) { got <- w }) {
		t.Fatal("an end during the start was not kept")
	}
	if w := <-got; w.ExitStatus() != 7 {
		t.Errorf("ended with %v", w)
	}
	r.clock++
	r.unknown[5] = end{r.clock, 0}
	r.finish(start)
	if len(r.unknown) != 1 {
		t.Error("an end was dropped that a start under way may ask for")
	}
	r.finish(other)
	if len(r.unknown) != 0 {
		t.Error("ends are kept that nobody can ask for")
	}
}
