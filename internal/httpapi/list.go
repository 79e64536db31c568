package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/croftproject/croft/api"
)

// ListQuery selects, pages and watches.
type ListQuery struct {
	Limit       int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Most items of the page."`
	Cursor      string   `query:"cursor" maxLength:"1024" doc:"Cursor of the page, from next of the page before."`
	Labels      []string `query:"labels,explode" maxItems:"64" doc:"Labels that must match, as key=value; repeated or separated by commas."`
	Phase       string   `query:"phase" doc:"Only resources in this phase."`
	Model       string   `query:"model" enum:"full,para,os" doc:"Only servers of this model."`
	Host        string   `query:"host" doc:"Only servers on this host."`
	Network     string   `query:"network" doc:"Only servers in this network."`
	Image       string   `query:"image" doc:"Only servers made from this image."`
	Kind        string   `query:"kind" doc:"Only events of this kind of resource."`
	Reason      string   `query:"reason" doc:"Only events with this reason."`
	Name        string   `query:"name" doc:"Only this name; a '*' at its end matches any rest."`
	Watch       bool     `query:"watch" doc:"Stream changes as server-sent events instead; so does Accept: text/event-stream."`
	From        int64    `query:"from" minimum:"0" doc:"With watch: changes after this revision. 0: from now, after a put of everything there is."`
	LastEventID string   `header:"Last-Event-ID" doc:"With watch: revision of the last change that was received; the same as from."`
	Accept      string   `header:"Accept"`
}

func (q *ListQuery) options(allTenants bool) (ListOptions, error) {
	o := ListOptions{Limit: q.Limit, Cursor: q.Cursor, AllTenants: allTenants}
	for _, group := range q.Labels {
		for _, label := range strings.Split(group, ",") {
			key, value, ok := strings.Cut(label, "=")
			if !ok || key == "" {
				p := api.Errorf(api.CodeInvalid, "labels are selected by key=value")
				p.Errors = []api.FieldError{{Pointer: "?labels", Code: api.CodeInvalid, Message: fmt.Sprintf("%q is not key=value", clip(label))}}
				return o, p
			}
			if o.Labels == nil {
				o.Labels = map[string]string{}
			}
			o.Labels[key] = value
		}
	}
	for field, value := range map[string]string{
		"phase": q.Phase, "model": q.Model, "host": q.Host, "network": q.Network, "image": q.Image, "name": q.Name,
		"kind": q.Kind, "reason": q.Reason,
	} {
		if value != "" {
			if o.Filter == nil {
				o.Filter = map[string]string{}
			}
			o.Filter[field] = value
		}
	}
	return o, nil
}

// from is the revision that a watch starts after.
func (q *ListQuery) from() (int64, error) {
	if q.LastEventID == "" {
		return q.From, nil
	}
	revision, err := strconv.ParseInt(q.LastEventID, 10, 64)
	if err != nil || revision < 0 {
		return 0, api.Errorf(api.CodeInvalid, "Last-Event-ID is %q, which is no revision", clip(q.LastEventID))
	}
	return revision, nil
}

// lists registers the list of a tenant and the one of all tenants.
func (k *kind[T, S]) lists() {
	op := k.operation(http.MethodGet, "list", k.path(), "List or watch "+k.plural, http.StatusOK)
	op.OperationID += "s"
	register(k.global, k.server, k.describeList(op),
		func(ctx context.Context, in *struct{ ListQuery }) (*huma.StreamResponse, error) {
			return k.list(ctx, "", in.ListQuery, false)
		},
		func(ctx context.Context, in *struct {
			InTenant
			ListQuery
		}) (*huma.StreamResponse, error) {
			if !nameForm.MatchString(in.Tenant) {
				return nil, k.checkNames(in.Tenant, "x")
			}
			return k.list(ctx, in.Tenant, in.ListQuery, false)
		})
	if k.global {
		return
	}
	op = k.operation(http.MethodGet, "list-all", "/v1/"+k.plural, "List or watch the "+k.plural+" of all tenants (operator)", http.StatusOK)
	op.OperationID += "s"
	huma.Register(k.api, k.describeList(op), answered(func(ctx context.Context, in *struct{ ListQuery }) (*huma.StreamResponse, error) {
		if err := needOperator(ctx); err != nil {
			return nil, err
		}
		return k.list(ctx, "", in.ListQuery, true)
	}))
}

// describeList gives the operation the schemas of what it answers, which it writes without them.
func (k *kind[T, S]) describeList(op huma.Operation) huma.Operation {
	op.Responses = map[string]*huma.Response{"200": {
		Description: "A page, or a stream of changes.",
		Content: map[string]*huma.MediaType{
			"application/json":  {Schema: k.ref(reflect.TypeFor[api.Page[T]]())},
			"text/event-stream": {Schema: k.ref(reflect.TypeFor[api.Change[T]]())},
		},
	}}
	return op
}

func (k *kind[T, S]) list(ctx context.Context, tenant string, q ListQuery, all bool) (*huma.StreamResponse, error) {
	o, err := q.options(all)
	if err != nil {
		return nil, err
	}
	if q.Watch || strings.Contains(q.Accept, "text/event-stream") {
		return k.watch(ctx, tenant, q, o)
	}
	page, err := k.resources().List(ctx, callerOf(ctx), tenant, o)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(ctx huma.Context) {
		body := encodePage(page)
		ctx.SetHeader("Content-Type", "application/json")
		ctx.SetHeader("Content-Length", strconv.Itoa(len(body)))
		ctx.BodyWriter().Write(body) //nolint:errcheck // the client is gone
	}}, nil
}

// encodePage writes an api.Page around items that are encoded already.
func encodePage(page Raw) []byte {
	size := 256 + len(page.Next)
	for _, item := range page.Items {
		size += len(item) + 1
	}
	b := bytes.NewBuffer(make([]byte, 0, size))
	b.WriteString(`{"items":[`)
	for i, item := range page.Items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(item)
	}
	b.WriteByte(']')
	if page.Next != "" {
		next, err := json.Marshal(page.Next)
		if err != nil {
			panic(err) // a string can be encoded
		}
		b.WriteString(`,"next":`)
		b.Write(next)
	}
	fmt.Fprintf(b, `,"total":%d,"revision":%d}`+"\n", page.Total, page.Revision)
	return b.Bytes()
}

// watch streams changes until the client goes, the watch breaks, or the daemon stops: the client then resumes with
// Last-Event-ID.
func (k *kind[T, S]) watch(ctx context.Context, tenant string, q ListQuery, o ListOptions) (*huma.StreamResponse, error) {
	from, err := q.from()
	if err != nil {
		return nil, err
	}
	changes, err := k.resources().Watch(ctx, callerOf(ctx), tenant, o, from)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer k.lasting.at(cancel)()
		stream(ctx, w, changes, k.keepAlive)
	}}, nil
}

// stream writes server-sent events (WHATWG HTML, 9.2). Changes that are there together are flushed together.
func stream(ctx context.Context, w http.ResponseWriter, changes <-chan []byte, keepAlive time.Duration) {
	flush := http.NewResponseController(w).Flush
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	out := []byte(": watching\n\n")
	for {
		if _, err := w.Write(out); err != nil {
			return
		}
		if len(changes) == 0 {
			if err := flush(); err != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			out = []byte(": keep-alive\n\n")
		case change, ok := <-changes:
			if !ok {
				return
			}
			out = event(change)
		}
	}
}

// event is one change as a server-sent event.
func event(change []byte) []byte {
	var head struct {
		Type     api.ChangeType `json:"type"`
		Revision int64          `json:"revision"`
	}
	if err := json.Unmarshal(change, &head); err != nil {
		return []byte(": a change that can't be read was left out\n\n")
	}
	b := make([]byte, 0, len(change)+64)
	if head.Revision > 0 { // else it can't be resumed after
		b = fmt.Appendf(b, "id: %d\n", head.Revision)
	}
	b = fmt.Appendf(b, "event: %s\ndata: ", head.Type)
	b = append(b, bytes.ReplaceAll(change, []byte("\n"), nil)...)
	return append(b, "\n\n"...)
}
