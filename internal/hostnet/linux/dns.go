package linux

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/croftproject/croft/internal/hostnet"
)

const (
	maxForwards  = 64  // questions of one network under way to resolvers
	maxClients   = 128 // TCP connections of one network
	clientIdle   = 5 * time.Second
	answerTTL    = 5    // seconds: a name may be another server's soon
	maxUDPAnswer = 1232 // bytes: fits every path's MTU (DNS flag day 2020)
)

// zone is what a network's DNS (RFC 1035) knows by itself.
type zone struct {
	domain     string // fully qualified, lower case; "" for none
	names      map[string][]netip.Addr
	reverse    map[netip.Addr]string
	subnets    []netip.Prefix
	forwarders []netip.Addr
	closed     bool // no way out: the host's resolvers are none of its
}

func newZone(n hostnet.Network) zone {
	z := zone{names: make(map[string][]netip.Addr, len(n.Records)), reverse: make(map[netip.Addr]string, len(n.Records)),
		forwarders: n.Forwarders, closed: !n.NAT}
	if n.Domain != "" {
		z.domain = dns.CanonicalName(n.Domain)
	}
	for _, s := range n.Subnets {
		z.subnets = append(z.subnets, s.Prefix)
	}
	for _, r := range n.Records {
		label := strings.ToLower(r.Name)
		z.names[label] = append(z.names[label], r.Addr)
		if _, ok := z.reverse[r.Addr]; !ok {
			z.reverse[r.Addr] = label
		}
	}
	return z
}

// answer answers a question that is the network's own to answer; nil for others. Names of the domain, names of a single
// label, and addresses of the subnets are never asked of other resolvers.
func (z zone) answer(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	if q.Response {
		return nil
	}
	if q.Opcode != dns.OpcodeQuery {
		return r.SetRcode(q, dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 {
		return r.SetRcode(q, dns.RcodeFormatError)
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		return r.SetRcode(q, dns.RcodeRefused)
	}
	name := dns.CanonicalName(question.Name)
	if ip, ok := reverseAddr(name); ok {
		return z.answerReverse(q, ip)
	}
	label, own := z.label(name)
	if !own {
		return nil
	}
	r.SetReply(q)
	r.Authoritative, r.RecursionAvailable = true, true
	addrs, known := z.names[label]
	if !known && label != "" {
		r.Rcode = dns.RcodeNameError
	}
	for _, a := range addrs {
		head := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: answerTTL}
		switch {
		case a.Is4() && (question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY):
			head.Rrtype = dns.TypeA
			r.Answer = append(r.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case a.Is6() && (question.Qtype == dns.TypeAAAA || question.Qtype == dns.TypeANY):
			head.Rrtype = dns.TypeAAAA
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	return z.negative(r)
}

// label tells whether a name is the network's own, and what it is called in the domain: "" for the domain itself.
func (z zone) label(name string) (string, bool) {
	if z.domain != "" && (name == z.domain || strings.HasSuffix(name, "."+z.domain)) {
		return strings.TrimSuffix(strings.TrimSuffix(name, z.domain), "."), true
	}
	if dns.CountLabel(name) == 1 {
		return strings.TrimSuffix(name, "."), true
	}
	return "", false
}

func (z zone) answerReverse(q *dns.Msg, ip netip.Addr) *dns.Msg {
	label, known := z.reverse[ip]
	if !known && !z.holds(ip) {
		return nil
	}
	r := new(dns.Msg).SetReply(q)
	r.Authoritative, r.RecursionAvailable = true, true
	if !known {
		r.Rcode = dns.RcodeNameError
	} else if t := q.Question[0].Qtype; t == dns.TypePTR || t == dns.TypeANY {
		r.Answer = []dns.RR{&dns.PTR{Ptr: label + "." + z.domain,
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: answerTTL}}}
	}
	return z.negative(r)
}

func (z zone) holds(ip netip.Addr) bool {
	for _, s := range z.subnets {
		if s.Contains(ip) {
			return true
		}
	}
	return false
}

// negative adds what an empty answer needs to be kept for a while (RFC 2308).
func (z zone) negative(r *dns.Msg) *dns.Msg {
	if len(r.Answer) == 0 && z.domain != "" {
		r.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: z.domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: answerTTL},
			Ns: "gateway." + z.domain, Mbox: "hostmaster." + z.domain, Serial: 1,
			Refresh: 3600, Retry: 600, Expire: 86400, Minttl: answerTTL}}
	}
	return r
}

// reverseAddr reads "4.3.2.1.in-addr.arpa." and its IPv6 kin.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		l := strings.Split(rest, ".")
		if len(l) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(l[3] + "." + l[2] + "." + l[1] + "." + l[0])
		return ip, err == nil && ip.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	l := strings.Split(rest, ".")
	if !ok || len(l) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		b.WriteString(l[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	ip, err := netip.ParseAddr(b.String())
	return ip, err == nil && ip.Is6()
}

// serveUDP answers datagrams. Own names are answered at once; others are forwarded beside, as many at a time as there
// are slots, and refused beyond.
func (s *services) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if ended(err) {
			return
		}
		if err != nil {
			s.log.Warn("read DNS question", "error", err)
			continue
		}
		s.guard("DNS", func() {
			q, r := s.consider(buf[:n])
			if q == nil {
				return
			}
			limit := dns.MinMsgSize
			if e := q.IsEdns0(); e != nil {
				limit = min(max(int(e.UDPSize()), dns.MinMsgSize), maxUDPAnswer)
			}
			if r != nil {
				s.writeUDP(c, from, r, limit)
				return
			}
			select {
			case s.slots <- struct{}{}:
			default:
				s.writeUDP(c, from, new(dns.Msg).SetRcode(q, dns.RcodeServerFailure), limit)
				return
			}
			s.running.Go(func() {
				defer func() { <-s.slots }()
				s.guard("DNS", func() { s.writeUDP(c, from, s.forward(q), limit) })
			})
		})
	}
}

func (s *services) writeUDP(c *net.UDPConn, to netip.AddrPort, r *dns.Msg, limit int) {
	r.Truncate(limit) // sets TC where it does not fit, so that the client asks again by TCP
	b, err := r.Pack()
	if err != nil {
		return
	}
	if _, err := c.WriteToUDPAddrPort(b, to); err != nil && !ended(err) {
		s.log.Debug("answer DNS", "to", to, "error", err)
	}
}

// consider reads a question and answers it if it can; without an answer it is to be forwarded. Both are nil for what
// is no question.
func (s *services) consider(b []byte) (q, r *dns.Msg) {
	q = new(dns.Msg)
	if err := q.Unpack(b); err != nil || q.Response {
		return nil, nil
	}
	if r = s.data.Load().dns.answer(q); r != nil && q.IsEdns0() != nil {
		r.SetEdns0(maxUDPAnswer, false)
	}
	return q, r
}

func (s *services) serveTCP(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if ended(err) {
			return
		}
		if err != nil {
			s.log.Warn("accept DNS connection", "error", err)
			continue
		}
		select {
		case s.clients <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		if !s.track(c) {
			_ = c.Close()
			<-s.clients
			return
		}
		s.running.Go(func() {
			defer func() { s.untrack(c); <-s.clients }()
			s.guard("DNS", func() { s.talk(&dns.Conn{Conn: c}) })
		})
	}
}

// talk answers the questions of one connection, one after the other, until it is idle.
func (s *services) talk(c *dns.Conn) {
	for {
		_ = c.SetDeadline(time.Now().Add(clientIdle))
		b, err := c.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		q, r := s.consider(b)
		if q == nil {
			return
		}
		if r == nil {
			select {
			case s.slots <- struct{}{}:
				r = s.forward(q)
				<-s.slots
			default:
				r = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
			}
		}
		_ = c.SetDeadline(time.Now().Add(clientIdle))
		if err := c.WriteMsg(r); err != nil {
			return
		}
	}
}

func (s *services) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *services) untrack(c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}
