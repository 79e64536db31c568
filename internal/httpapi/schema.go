package httpapi

import (
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/croftproject/croft/api"
)

const schemaPrefix = "#/components/schemas/"

// Quantities are documented as components of their own. These types stand in for them while schemas are made: the
// router would take the integers that they are made of, and can't read their defaults.
type (
	bytesSchema    string
	cpuSchema      string
	rateSchema     string
	durationSchema string
)

func (bytesSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Ref: schemaPrefix + "Bytes"}
}
func (cpuSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Ref: schemaPrefix + "MilliCPU"}
}
func (rateSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Ref: schemaPrefix + "BitRate"}
}
func (durationSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Ref: schemaPrefix + "Duration"}
}

var quantityTypes = map[reflect.Type]reflect.Type{
	reflect.TypeFor[api.Bytes]():    reflect.TypeFor[bytesSchema](),
	reflect.TypeFor[api.MilliCPU](): reflect.TypeFor[cpuSchema](),
	reflect.TypeFor[api.BitRate]():  reflect.TypeFor[rateSchema](),
	reflect.TypeFor[api.Duration](): reflect.TypeFor[durationSchema](),
}

// newRegistry is a registry that knows the quantities by reference.
func newRegistry() huma.Registry {
	r := huma.NewMapRegistry(schemaPrefix, huma.DefaultSchemaNamer)
	for t, alias := range quantityTypes {
		r.RegisterTypeAlias(t, alias)
	}
	return r
}

// finishSchemas adds the quantities' components and their fields' defaults once all other schemas are made.
func finishSchemas(r huma.Registry) {
	for name, schema := range r.Map() {
		t := r.TypeFromRef(schemaPrefix + name)
		if t == nil {
			continue
		}
		for _, f := range reflect.VisibleFields(t) {
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			value, ok := f.Tag.Lookup("default")
			if _, quantity := quantityTypes[ft]; !ok || !quantity {
				continue
			}
			tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			schema.Properties[tag].Default = value
		}
	}
	for name, schema := range quantitySchemas() {
		schema.PrecomputeMessages()
		r.Map()[name] = schema
	}
}

func quantitySchemas() map[string]*huma.Schema {
	zero := 0.0
	quantity := func(doc, pattern string, examples ...any) *huma.Schema {
		text := &huma.Schema{Type: huma.TypeString, Pattern: pattern}
		number := &huma.Schema{Type: huma.TypeNumber, Minimum: &zero}
		text.PrecomputeMessages()
		number.PrecomputeMessages()
		return &huma.Schema{Description: doc, AnyOf: []*huma.Schema{text, number}, Examples: examples}
	}
	duration := &huma.Schema{
		Type: huma.TypeString, Description: "Span of time, as a number with a unit (ns, us, ms, s, m, h), or several.",
		Examples: []any{"30s", "5m", "1h30m"},
	}
	return map[string]*huma.Schema{
		"Bytes": quantity("Amount of memory or storage: a string with a binary (KiB, MiB, GiB, TiB, PiB) or decimal suffix (kB, MB, GB, TB, PB), or a number of bytes.",
			`^[0-9]+(\.[0-9]+)? ?([KMGTP]iB|[kKMGTP]?B)?$`, "256MiB", "10GB", 4096),
		"MilliCPU": quantity("Rate of processor time: a number of CPUs, or a string of CPUs or thousandths of one (m).",
			`^[0-9]+(\.[0-9]+)? ?m?$`, "500m", "1.5", 2),
		"BitRate": quantity("Data rate: a string with a decimal suffix (kbit, Mbit, Gbit, Tbit), or a number of bits per second.",
			`^[0-9]+(\.[0-9]+)? ?([kMGT]?bit)?$`, "20Mbit", "1.5Gbit"),
		"Duration": duration,
	}
}
