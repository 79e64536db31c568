package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"
)

// Row is one figure. Less is better, unless the bar says otherwise.
type Row struct {
	Name     string   `json:"name"` // area/figure
	Ours     *float64 `json:"ours"`
	Peer     *float64 `json:"peer"`  // null where there is none, or it is not installed
	Ratio    *float64 `json:"ratio"` // ours to the peer's
	Bar      string   `json:"bar"`
	Met      *bool    `json:"met"` // null where it could not be measured
	Unit     string   `json:"unit,omitempty"`
	PeerName string   `json:"peerName,omitempty"`
	Note     string   `json:"note,omitempty"`
}

// Figure is a value that was measured.
func Figure(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	v = round(v)
	return &v
}

// round keeps four digits: the rest is noise.
func round(v float64) float64 {
	r, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	return r
}

// Bar is what a row has to reach.
type Bar struct {
	Text string
	Met  func(ours, ratio *float64) *bool
}

func verdict(v *float64, ok func(float64) bool) *bool {
	if v == nil {
		return nil
	}
	met := ok(*v)
	return &met
}

// AtMost bounds the value itself.
func AtMost(limit float64, unit string) Bar {
	return Bar{fmt.Sprintf("≤ %g %s", limit, unit), func(ours, _ *float64) *bool {
		return verdict(ours, func(v float64) bool { return v <= limit })
	}}
}

// Times bounds the value by a multiple of the peer's.
func Times(factor float64) Bar {
	return Bar{fmt.Sprintf("≤ %.4g× peer", factor), func(_, ratio *float64) *bool {
		return verdict(ratio, func(v float64) bool { return v <= factor })
	}}
}

// Within bounds the distance from a promised value, as a share of it.
func Within(target, share float64) Bar {
	return Bar{fmt.Sprintf("%g ± %g%%", target, 100*share), func(ours, _ *float64) *bool {
		return verdict(ours, func(v float64) bool { return math.Abs(v-target) <= share*target })
	}}
}

// NewRow judges a figure. A peer that is NaN was not measured.
func NewRow(name, unit string, ours, peer float64, peerName string, bar Bar, note string) Row {
	r := Row{Name: name, Unit: unit, Ours: Figure(ours), Peer: Figure(peer), Bar: bar.Text, PeerName: peerName, Note: note}
	if r.Ours != nil && r.Peer != nil {
		r.Ratio = Figure(ours / peer)
	}
	r.Met = bar.Met(r.Ours, r.Ratio)
	return r
}

// None is the peer's figure where there is no peer.
var None = math.NaN()

func (r Row) String() string {
	return fmt.Sprintf("%s: %s %s, %s %s, ratio %s, bar %s: %s", r.Name, text(r.Ours), r.Unit, r.PeerName, text(r.Peer), text(r.Ratio), r.Bar, r.verdict())
}

func (r Row) verdict() string {
	switch {
	case r.Met == nil:
		return "not measured"
	case *r.Met:
		return "yes"
	}
	return "NO"
}

func text(v *float64) string {
	if v == nil {
		return "-"
	}
	return strconv.FormatFloat(*v, 'f', decimals(*v), 64)
}

func decimals(v float64) int {
	switch v = math.Abs(v); {
	case v >= 100:
		return 0
	case v >= 10:
		return 1
	case v >= 1:
		return 2
	}
	return 3
}

// printTable prints the rows aligned, and their notes below.
func printTable(w io.Writer, rows []Row) {
	if len(rows) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tunit\tours\tpeer\t\tratio\tbar\tmet")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Unit, text(r.Ours), text(r.Peer), r.PeerName, text(r.Ratio), r.Bar, r.verdict())
	}
	t.Flush() //nolint:errcheck // a table that can't be printed is seen
	fmt.Fprintln(w)
	for _, r := range rows {
		if r.Note != "" {
			fmt.Fprintf(w, "  %s: %s\n", r.Name, r.Note)
		}
	}
}
