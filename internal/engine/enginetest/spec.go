package enginetest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
)

func testTraits(t *testing.T, h *Harness) {
	traits := h.New(t).Traits()
	if traits.Name == "" || strings.ToLower(traits.Name) != traits.Name || strings.ContainsAny(traits.Name, " /") {
		t.Errorf("name %q is no lower-case word", traits.Name)
	}
	if !slices.Contains(api.Models, traits.Model) {
		t.Errorf("unknown model %q", traits.Model)
	}
	if again := h.New(t).Traits(); again != traits {
		t.Errorf("traits are not constant: %+v, then %+v", traits, again)
	}
}

func testProbe(t *testing.T, h *Harness) {
	report := h.New(t).Probe(within(t, h.LaunchLimit))
	if !report.Available {
		t.Fatalf("the suite runs where the engine works, but the probe says no: %s", report.Reason)
	}
	if report.Version == "" {
		t.Error("no version")
	}
	told := slices.Clone(report.Grants)
	for _, w := range report.Withheld {
		if told = append(told, w.Kind); w.Reason == "" {
			t.Errorf("withholds %s without a reason", w.Kind)
		}
	}
	slices.Sort(told)
	if want := slices.Sorted(slices.Values(api.GrantKinds)); !slices.Equal(told, want) {
		t.Errorf("tells of the grants %v, want each of %v once", told, want)
	}
}

func testValidate(t *testing.T, h *Harness) {
	e := h.New(t)
	good := h.Machine(t, newID()).Spec
	if errs := e.Validate(good); len(errs) > 0 {
		t.Errorf("refuses the harness's own spec: %v", errs)
	}
	if e.Overhead(good) < 0 {
		t.Errorf("overhead is negative: %v", e.Overhead(good))
	}
	bad := append([]BadSpec{
		{"another model", func(s *api.ServerSpec) { s.Model = otherModel(e.Traits().Model) }, "/spec/model"},
		{"grant of unknown kind", func(s *api.ServerSpec) { s.Grants = []api.Grant{{Kind: "no-such-kind"}} }, "/spec/grants/0/kind"},
	}, h.Bad...)
	for _, test := range bad {
		t.Run(test.Name, func(t *testing.T) {
			spec := clone(t, good)
			test.Change(spec)
			before := clone(t, spec)
			errs := e.Validate(spec)
			if !slices.ContainsFunc(errs, func(f api.FieldError) bool { return f.Pointer == test.Pointer }) {
				t.Errorf("want an error at %s, got %+v", test.Pointer, errs)
			}
			for _, f := range errs {
				if f.Message == "" || !strings.HasPrefix(f.Pointer, "/spec/") {
					t.Errorf("useless error %+v", f)
				}
			}
			if string(mustJSON(t, spec)) != string(mustJSON(t, before)) {
				t.Error("Validate changed the spec")
			}
		})
	}
}

func otherModel(m api.Model) api.Model {
	if m == api.ModelOS {
		return api.ModelFull
	}
	return api.ModelOS
}

func clone(t testing.TB, s *api.ServerSpec) *api.ServerSpec {
	t.Helper()
	var c api.ServerSpec
	if err := json.Unmarshal(mustJSON(t, s), &c); err != nil {
		t.Fatal(err)
	}
	return &c
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func testResize(t *testing.T, h *Harness) {
	e := h.New(t)
	m, g := h.running(t, e)
	r, ok := g.(engine.Resizer)
	if !ok {
		return // the engine's guests need no telling
	}
	if err := r.Resize(within(t, h.StopLimit), m.Spec, clone(t, m.Spec)); err != nil {
		t.Errorf("resize to what it is: %v", err)
	}
	if !open(g) {
		t.Error("the guest ended")
	}
}
