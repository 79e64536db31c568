package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
)

// Bytes is an amount of memory or storage, in bytes. It is written as people write it: "256MiB", "10GB", "4096".
// Binary suffixes (KiB, MiB, GiB, TiB, PiB) are powers of 1024, decimal ones (kB, MB, GB, TB, PB) powers of 1000
// (IEC 80000-13).
type Bytes int64

// MilliCPU is a rate of processor time, in thousandths of one CPU: "500m", "2", "1.5".
type MilliCPU int64

// BitRate is a data rate in bits per second, as counted on the wire: "20Mbit", "1.5Gbit", "64kbit".
// Suffixes are powers of 1000, as in tc(8) and IEEE 802.3.
type BitRate int64

// Binary and decimal multiples of a byte.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// CPU is one whole processor.
const CPU1 MilliCPU = 1000

type unit struct {
	suffix string
	factor int64
}

// Longest suffix first, so that "KiB" is not read as "B".
var byteUnits = []unit{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15},
	{"B", 1}, {"", 1},
}

var cpuUnits = []unit{{"m", 1}, {"", 1000}}

var rateUnits = []unit{
	{"kbit", 1e3}, {"Mbit", 1e6}, {"Gbit", 1e9}, {"Tbit", 1e12}, {"bit", 1}, {"", 1},
}

var (
	errQuantitySyntax = errors.New("is not a quantity")
	errQuantityRange  = errors.New("is out of range")
	errQuantityFine   = errors.New("is finer than the unit can express")
)

// parseQuantity reads a non-negative decimal number with one of the given suffixes. The result is exact: a value that
// is no whole number of base units, or does not fit in 63 bits, is an error.
func parseQuantity(s string, units []unit) (int64, error) {
	if len(s) > 40 {
		return 0, errQuantitySyntax
	}
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		number = strings.TrimSuffix(number, " ")
		if !plainNumber(number) {
			return 0, errQuantitySyntax
		}
		value, ok := new(big.Rat).SetString(number)
		if !ok {
			return 0, errQuantitySyntax
		}
		value.Mul(value, new(big.Rat).SetInt64(u.factor))
		if !value.IsInt() {
			return 0, errQuantityFine
		}
		if !value.Num().IsInt64() {
			return 0, errQuantityRange
		}
		return value.Num().Int64(), nil
	}
	return 0, errQuantitySyntax
}

// plainNumber tells whether s is digits with at most one point between them: no sign, exponent, fraction bar or base
// prefix, all of which big.Rat would take.
func plainNumber(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	return digits(whole) && (!point || digits(fraction))
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

// ParseBytes reads an amount such as "256MiB".
func ParseBytes(s string) (Bytes, error) {
	n, err := parseQuantity(s, byteUnits)
	if err != nil {
		return 0, fmt.Errorf("%q %w: write a size such as 256MiB or 10GiB", s, err)
	}
	return Bytes(n), nil
}

// ParseMilliCPU reads a number of CPUs such as "2", "1.5" or "500m".
func ParseMilliCPU(s string) (MilliCPU, error) {
	n, err := parseQuantity(s, cpuUnits)
	if err != nil {
		return 0, fmt.Errorf("%q %w: write CPUs such as 2, 0.5 or 500m", s, err)
	}
	return MilliCPU(n), nil
}

// ParseBitRate reads a rate such as "20Mbit".
func ParseBitRate(s string) (BitRate, error) {
	n, err := parseQuantity(s, rateUnits)
	if err != nil {
		return 0, fmt.Errorf("%q %w: write a rate such as 20Mbit or 1.5Gbit", s, err)
	}
	return BitRate(n), nil
}

// String writes the amount with the largest binary suffix that keeps it exact.
func (b Bytes) String() string {
	return formatUnits(int64(b), []unit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}, "B")
}

// Approx writes the amount rounded to a tenth of the largest binary unit that it fills, for people: "1.4GiB".
func (b Bytes) Approx() string {
	for _, u := range []unit{{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if int64(b) >= u.factor {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(b)/float64(u.factor)), ".0") + u.suffix
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}

// String writes whole CPUs as a number and the rest in thousandths.
func (c MilliCPU) String() string {
	if c%1000 == 0 {
		return fmt.Sprint(int64(c) / 1000)
	}
	return fmt.Sprintf("%dm", int64(c))
}

// String writes the rate with the largest decimal suffix that keeps it exact.
func (r BitRate) String() string {
	return formatUnits(int64(r), []unit{{"Tbit", 1e12}, {"Gbit", 1e9}, {"Mbit", 1e6}, {"kbit", 1e3}}, "bit")
}

func formatUnits(n int64, units []unit, base string) string {
	for _, u := range units {
		if n != 0 && n != math.MinInt64 && n%u.factor == 0 {
			return fmt.Sprintf("%d%s", n/u.factor, u.suffix)
		}
	}
	return fmt.Sprintf("%d%s", n, base)
}

func (b Bytes) MarshalText() ([]byte, error)    { return []byte(b.String()), nil }
func (c MilliCPU) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
func (r BitRate) MarshalText() ([]byte, error)  { return []byte(r.String()), nil }

func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}
func (c *MilliCPU) UnmarshalText(text []byte) (err error) {
	*c, err = ParseMilliCPU(string(text))
	return err
}
func (r *BitRate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseBitRate(string(text))
	return err
}

// UnmarshalJSON takes a JSON string, or a plain JSON number in the base unit (bytes, CPUs, bits per second).
func (b *Bytes) UnmarshalJSON(data []byte) error    { return unmarshalQuantity(data, b.UnmarshalText) }
func (c *MilliCPU) UnmarshalJSON(data []byte) error { return unmarshalQuantity(data, c.UnmarshalText) }
func (r *BitRate) UnmarshalJSON(data []byte) error  { return unmarshalQuantity(data, r.UnmarshalText) }

func unmarshalQuantity(data []byte, set func([]byte) error) error {
	if string(data) == "null" {
		return nil
	}
	if len(data) > 0 && data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		return set([]byte(text))
	}
	return set(data)
}
