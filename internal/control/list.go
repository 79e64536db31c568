package control

import (
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
)

// selection is what a list or a watch shows.
type selection struct {
	kind   kind
	tenant string // empty: all
	labels map[string]string
	filter map[string]string
	since  time.Time // what was before was another tenant's of the same name
}

// fields that resources of a kind can be filtered by.
var fields = map[kind][]string{
	kindServer:  {"name", "phase", "model", "host", "network", "image"},
	kindNetwork: {"name"},
	kindImage:   {"name", "model"},
	kindHost:    {"name", "phase"},
	kindTenant:  {"name"},
	kindJob:     {"name", "phase"},
	kindEvent:   {"name", "kind", "reason"},
}

// choose checks who may see what, and the filter.
func choose(who httpapi.Caller, k kind, tenant string, o httpapi.ListOptions) (selection, error) {
	s := selection{kind: k, tenant: tenant, labels: o.Labels, filter: o.Filter}
	switch {
	case o.AllTenants:
		s.tenant = ""
		if err := operatorOnly(who, "list over all tenants"); err != nil {
			return s, err
		}
	case k == kindHost || k == kindTenant:
		s.tenant = ""
		if err := operatorOnly(who, "list "+string(k)+"s"); err != nil {
			return s, err
		}
	default:
		if err := authorize(who, tenant); err != nil {
			return s, err
		}
	}
	for field := range o.Filter {
		if !slices.Contains(fields[k], field) {
			p := api.Errorf(api.CodeInvalid, "%ss can't be filtered by %s, only by %s", k, field, strings.Join(fields[k], ", "))
			p.Errors = []api.FieldError{{Pointer: "?" + field, Code: api.CodeInvalid, Message: "no such filter"}}
			return s, p
		}
	}
	return s, nil
}

// locate finds the selection's tenant. Events and jobs outlive theirs: a tenant sees none of one that had its name before.
func (c *Control) locate(s *selection) error {
	m, err := c.tenant(s.tenant)
	if s.kind == kindEvent || s.kind == kindJob {
		s.since = m.Created
	}
	return err
}

// all tells whether the selection is everything of a tenant, which needs no look at each.
func (s selection) all() bool { return len(s.labels) == 0 && len(s.filter) == 0 }

func (s selection) has(e *entry) bool {
	if e == nil || (s.tenant != "" && e.meta.Tenant != s.tenant && !e.shared) || e.meta.Created.Before(s.since) {
		return false
	}
	for k, v := range s.labels {
		if have, ok := e.meta.Labels[k]; !ok || have != v {
			return false
		}
	}
	for field, want := range s.filter {
		if !matches(e, field, want) {
			return false
		}
	}
	return true
}

func matches(e *entry, field, want string) bool {
	if field == "name" {
		if prefix, ok := strings.CutSuffix(want, "*"); ok {
			return strings.HasPrefix(e.meta.Name, prefix)
		}
		return e.meta.Name == want
	}
	switch o := e.obj.(type) {
	case *api.Server:
		return matchesServer(o, field, want)
	case *api.Image:
		return slices.Contains(o.Status.Models, api.Model(want))
	case *api.Host:
		return o.Status.Phase == want
	case *api.Job:
		return string(o.Status.Phase) == want
	case *api.Event:
		return field == "kind" && o.Kind == want || field == "reason" && o.Reason == want
	}
	return false
}

func matchesServer(s *api.Server, field, want string) bool {
	switch field {
	case "phase":
		return string(s.Status.Phase) == want
	case "model":
		return string(s.Spec.Model) == want
	case "host":
		return s.Status.Host == want
	case "image":
		return s.Spec.Image == want || s.Status.ImageID == want
	case "network":
		return slices.ContainsFunc(s.Spec.Ports, func(p api.Port) bool { return p.Network == want })
	}
	return false
}

// Limits of a page.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// list reads one page. The cursor is the key of the last item, so that what comes or goes meanwhile neither repeats nor
// hides anything else.
func (ix *index) list(s selection, o httpapi.ListOptions) (httpapi.Raw, error) {
	limit := o.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	if limit < 1 || limit > maxLimit {
		p := api.Errorf(api.CodeInvalid, "a page has 1 to %d items", maxLimit)
		p.Errors = []api.FieldError{{Pointer: "?limit", Code: api.CodeInvalid, Message: "out of range"}}
		return httpapi.Raw{}, p
	}
	after, err := base64.RawURLEncoding.DecodeString(o.Cursor)
	if err != nil {
		p := api.Errorf(api.CodeInvalid, "the cursor is not one that a page named")
		p.Errors = []api.FieldError{{Pointer: "?cursor", Code: api.CodeInvalid, Message: "not a cursor"}}
		return httpapi.Raw{}, p
	}
	ix.mu.RLock()
	entries, total, more := ix.tables[s.kind].page(s, string(after), limit)
	out := httpapi.Raw{Total: total, Revision: ix.revision}
	ix.mu.RUnlock()
	out.Items = make([][]byte, len(entries))
	for i, e := range entries {
		out.Items[i] = e.encoded()
	}
	if more {
		out.Next = base64.RawURLEncoding.EncodeToString([]byte(entries[len(entries)-1].key))
	}
	return out, nil
}

func (t *table) page(s selection, after string, limit int) (page []*entry, total int, more bool) {
	from, to := 0, len(t.sorted)
	if s.tenant != "" && t.kind != kindImage && t.kind != kindEvent && t.kind != kindJob {
		from, to = t.tenantRange(s.tenant)
		s.tenant = ""
	}
	start := from
	if after != "" {
		at, there := t.find(after)
		if there {
			at++
		}
		start = min(max(from, at), to)
	}
	if s.all() && s.tenant == "" {
		end := min(start+limit, to)
		return slices.Clone(t.sorted[start:end]), to - from, end < to
	}
	for i, e := range t.sorted[from:to] {
		if !s.has(e) {
			continue
		}
		total++
		if from+i < start {
			continue
		}
		if len(page) < limit {
			page = append(page, e)
		} else {
			more = true
		}
	}
	return page, total, more
}

// find reads one resource by name or id.
func find[T any](c *Control, k kind, tenant, name string) (*T, error) {
	c.ix.mu.RLock()
	defer c.ix.mu.RUnlock()
	e := c.ix.tables[k].named(tenant, name)
	if e == nil {
		return nil, missing(k, tenant, name)
	}
	copied := *e.obj.(*T)
	return &copied, nil
}

func missing(k kind, tenant, name string) error {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	if tenant == "" {
		return api.Errorf(api.CodeNotFound, "there is no %s %q", k, name)
	}
	return api.Errorf(api.CodeNotFound, "tenant %s has no %s %q", tenant, k, name)
}
