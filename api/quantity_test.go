package api

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]Bytes{
		"0": 0, "1": 1, "4096": 4096, "4096B": 4096, "256MiB": 256 * MiB, "1.5GiB": 1536 * MiB, "10GB": 1e10, "3kB": 3000,
		"8191PiB": 8191 << 50, "2 GiB": 2 * GiB,
	} {
		if got, err := ParseBytes(in); got != want || err != nil {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "MiB", "-1", "+1", "1e3", "0x10", "1/2", "1.", ".5", "1.5", "0.3KiB", "8192PiB", "9223372036854775808", "1MiBB",
		"1 000", "١", "NaN", "Inf", "1mib", strings.Repeat("9", 1000),
	} {
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d; want an error", in, got)
		}
	}
}

func TestParseMilliCPU(t *testing.T) {
	for in, want := range map[string]MilliCPU{"2": 2000, "0.5": 500, "500m": 500, "1.25": 1250, "0": 0} {
		if got, err := ParseMilliCPU(in); got != want || err != nil {
			t.Errorf("ParseMilliCPU(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "0.5m", "0.0001", "-1", "1k"} {
		if got, err := ParseMilliCPU(in); err == nil {
			t.Errorf("ParseMilliCPU(%q) = %d; want an error", in, got)
		}
	}
}

func TestParseBitRate(t *testing.T) {
	for in, want := range map[string]BitRate{"20Mbit": 20e6, "1.5Gbit": 15e8, "64kbit": 64000, "9": 9, "9bit": 9, "1Tbit": 1e12} {
		if got, err := ParseBitRate(in); got != want || err != nil {
			t.Errorf("ParseBitRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "Mbit", "-1Mbit", "0.5bit", "20MBit", "10000000Tbit"} {
		if got, err := ParseBitRate(in); err == nil {
			t.Errorf("ParseBitRate(%q) = %d; want an error", in, got)
		}
	}
}

// What is written is read back as the same amount, whatever the amount.
func TestQuantitiesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, math.MaxInt64).Draw(t, "n")
		if b, err := ParseBytes(Bytes(n).String()); b != Bytes(n) || err != nil {
			t.Errorf("bytes %d: %q, %d, %v", n, Bytes(n), b, err)
		}
		if c, err := ParseMilliCPU(MilliCPU(n).String()); c != MilliCPU(n) || err != nil {
			t.Errorf("CPU %d: %q, %d, %v", n, MilliCPU(n), c, err)
		}
		if r, err := ParseBitRate(BitRate(n).String()); r != BitRate(n) || err != nil {
			t.Errorf("rate %d: %q, %d, %v", n, BitRate(n), r, err)
		}
	})
}

func TestQuantitiesInJSON(t *testing.T) {
	var v struct {
		Memory Bytes
		CPU    MilliCPU
		Rate   BitRate
	}
	if err := json.Unmarshal([]byte(`{"Memory": 1048576, "CPU": 1.5, "Rate": "20Mbit"}`), &v); err != nil {
		t.Fatal(err)
	}
	if v.Memory != MiB || v.CPU != 1500 || v.Rate != 20e6 {
		t.Errorf("%+v", v)
	}
	out, err := json.Marshal(v)
	if want := `{"Memory":"1MiB","CPU":"1500m","Rate":"20Mbit"}`; string(out) != want || err != nil {
		t.Errorf("%s, %v; want %s", out, err, want)
	}
	for _, bad := range []string{`{"Memory": -1}`, `{"Memory": {}}`, `{"CPU": true}`, `{"Rate": [1]}`, `{"Memory": 1e400}`} {
		if err := json.Unmarshal([]byte(bad), &v); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"", "1", "256MiB", "1.5GB", "-1", "9223372036854775807", "8191.999PiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q is %d", s, n)
		}
		if again, err := ParseBytes(n.String()); again != n || err != nil {
			t.Fatalf("%q is %d, written %q, read %d (%v)", s, n, n, again, err)
		}
	})
}

func TestProblems(t *testing.T) {
	p := Invalid([]FieldError{{Pointer: "/spec/cpu/cap", Message: "is below the entitlement"}})
	if p.Code != CodeInvalid || p.Status != 422 || !strings.Contains(p.Error(), "/spec/cpu/cap: is below") {
		t.Errorf("%+v", p)
	}
	if Invalid(nil) != nil {
		t.Error("a problem out of nothing")
	}
	for _, c := range []Code{CodeInvalid, CodeMalformed, CodeTooLarge, CodeNotFound, CodeExists, CodeConflict, CodeInUse, CodeProtected,
		CodeCapacity, CodeQuota, CodeForbidden, CodeUnsupported, CodeWrongState, CodeBadImage, CodeKeyReused, CodeUnknownField, CodeMethod} {
		if s := c.HTTPStatus(); s < 400 || s > 499 {
			t.Errorf("%s is answered with %d: the request is at fault", c, s)
		}
	}
}
