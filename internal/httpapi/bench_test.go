package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/httpapi/httpapitest"
)

// BenchmarkList1000 is a list of 1,000 servers over the unix socket, read to its end.
func BenchmarkList1000(b *testing.B) {
	fake := httpapitest.New()
	raw := httpapi.Raw{Total: 1000, Revision: 1000}
	for i := range 1000 {
		s := api.Server{
			Meta: api.Meta{Name: fmt.Sprintf("server-%d", i), Tenant: "default", ID: fmt.Sprintf("01k%023d", i), Revision: int64(i), Created: time.Now()},
			Spec: api.ServerSpec{Model: api.ModelOS, Engine: "auto", Image: "micro", CPU: api.CPU{Count: 1, Cap: 1000}, Memory: api.Memory{Limit: api.GiB}},
			Status: api.ServerStatus{Phase: api.PhaseRunning, Host: "host-1", Engine: "runc", Started: time.Now(), Ready: time.Now(),
				Conditions: []api.Condition{{Type: "Ready", Status: true, Since: time.Now()}}},
		}
		data, err := json.Marshal(s)
		if err != nil {
			b.Fatal(err)
		}
		raw.Items = append(raw.Items, data)
	}
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := httpapi.Listen(socket)
	if err != nil {
		b.Fatal(err)
	}
	server := httpapi.Server(httpapi.New(httpapi.Options{Control: pages{fake, raw}, Guests: httpapitest.NewGuests(fake)}), nil)
	defer server.Close()
	go server.Serve(l)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	for b.Loop() {
		answer, err := client.Get("http://croft/v1/tenants/default/servers?limit=1000")
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil || n < 100_000 {
			b.Fatal(n, err)
		}
	}
}
