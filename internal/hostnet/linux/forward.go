package linux

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	forwardTimeout = 2 * time.Second // of one resolver, one protocol
	maxResolvers   = 3               // as resolv.conf(5) has it
)

// resolvers asks other resolvers, from the host's namespace.
type resolvers struct {
	path string // resolv.conf(5)
	host *site

	mu    sync.Mutex
	mtime time.Time
	list  []netip.AddrPort
}

func newResolvers(path string, host *site) *resolvers { return &resolvers{path: path, host: host} }

// ofHost are the host's resolvers as they are now: the file is read again when it has changed.
func (r *resolvers) ofHost() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := os.Stat(r.path)
	if err != nil {
		return nil
	}
	if st.ModTime().Equal(r.mtime) {
		return r.list
	}
	conf, err := dns.ClientConfigFromFile(r.path)
	if err != nil {
		return nil
	}
	r.mtime, r.list = st.ModTime(), nil
	for _, s := range conf.Servers {
		if ip, err := netip.ParseAddr(s); err == nil {
			r.list = append(r.list, netip.AddrPortFrom(ip, 53))
		}
	}
	return r.list
}

// forward asks a network's resolvers, or the host's where it has a way out, one after the other. Without any, or without
// an answer, it fails.
func (s *services) forward(q *dns.Msg) *dns.Msg {
	var to []netip.AddrPort
	zone := s.data.Load().dns
	for _, f := range zone.forwarders {
		to = append(to, netip.AddrPortFrom(f, 53))
	}
	if len(to) == 0 && !zone.closed {
		to = s.res.ofHost()
	}
	if len(to) == 0 {
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	for _, at := range to[:min(len(to), maxResolvers)] {
		r, err := s.res.ask(s.life, at, q)
		if err == nil && r.Rcode != dns.RcodeServerFailure && r.Rcode != dns.RcodeRefused {
			r.Id, r.Question = q.Id, q.Question
			return r
		}
		if err != nil {
			s.log.Debug("ask resolver", "at", at, "error", err)
		}
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// ask asks one resolver, under an id of its own, and again by TCP where the answer did not fit.
func (r *resolvers) ask(ctx context.Context, at netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	m := q.Copy()
	m.Id = dns.Id()
	var answer *dns.Msg
	for _, proto := range []string{"udp", "tcp"} {
		c, err := r.dial(ctx, proto, at)
		if err != nil {
			return nil, err
		}
		client := &dns.Client{Net: proto, Timeout: forwardTimeout, UDPSize: maxUDPAnswer}
		// The exchange sets its own deadlines, so its end is to close the connection.
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		answer, _, err = client.ExchangeWithConn(m, &dns.Conn{Conn: c})
		stop()
		_ = c.Close()
		if err != nil {
			return nil, err
		}
		if !answer.Truncated {
			break
		}
	}
	return answer, nil
}

// dial connects from the host's namespace.
func (r *resolvers) dial(ctx context.Context, proto string, at netip.AddrPort) (c net.Conn, err error) {
	err = r.host.run(func() error {
		c, err = (&net.Dialer{Timeout: forwardTimeout}).DialContext(ctx, proto, at.String())
		return err
	})
	return c, err
}
