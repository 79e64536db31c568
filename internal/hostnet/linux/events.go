package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// events hears of changes to devices, addresses and routes in a network's namespace and in those that are joined to it:
// the kernel delivers events of every namespace that the socket's own has an id for (netlink(7),
// NETLINK_LISTEN_ALL_NSID), and a veth pair gives each of its two namespaces one for the other.
//
// It is read at the time of a Set. Events say where to look, never what is there, and a Set's own count too.
type events struct {
	fd   int
	all  bool         // some were lost: look at everything
	link map[int]bool // by interface index in the network's namespace
	peer map[int]bool // by namespace id
}

// listenBuffer holds some hundred events. When it overflows, everything is looked at.
const listenBuffer = 1 << 20

func listen(s *site) (*events, error) {
	e := &events{fd: -1, link: map[int]bool{}, peer: map[int]bool{}}
	err := s.run(func() (err error) {
		e.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open event socket: %w", err)
	}
	_ = unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenBuffer)
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE)
	err = errors.Join(
		unix.SetsockoptInt(e.fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1),
		unix.Bind(e.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	if err != nil {
		e.close()
		return nil, fmt.Errorf("listen for events: %w", err)
	}
	return e, nil
}

// read takes what has been heard since the last read.
func (e *events) read() error {
	buf, oob := make([]byte, 32<<10), make([]byte, 128)
	for {
		n, o, flags, _, err := unix.Recvmsg(e.fd, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS) || err == nil && flags&unix.MSG_TRUNC != 0:
			e.all = true
			continue
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		}
		if id, ok := namespaceID(oob[:o]); ok {
			e.peer[id] = true
			continue
		}
		e.note(buf[:n])
	}
}

// note marks what messages of the network's own namespace are about.
func (e *events) note(b []byte) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return
		}
		kind, body := binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]
		if (kind == unix.RTM_NEWLINK || kind == unix.RTM_DELLINK) && len(body) >= unix.SizeofIfInfomsg {
			e.link[int(int32(binary.NativeEndian.Uint32(body[4:])))] = true
		}
		// Addresses and routes of this namespace are those of the router, which every Set looks at.
		b = b[min((size+3)&^3, len(b)):]
	}
}

// namespaceID is the id of the namespace that a message came from, if not the socket's own.
func namespaceID(oob []byte) (int, bool) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(m.Data))), true
		}
	}
	return 0, false
}

// take returns what read gathered and begins anew.
func (e *events) take() (all bool, link, peer map[int]bool) {
	all, link, peer = e.all, e.link, e.peer
	e.all, e.link, e.peer = false, map[int]bool{}, map[int]bool{}
	return all, link, peer
}

// wait returns when something happened, or after a short while so that the caller can look whether its context ended.
func (e *events) wait() error {
	const turn = 50 // ms
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, turn)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for events: %w", err)
	}
	if n > 0 {
		return e.read()
	}
	return nil
}

func (e *events) close() {
	if e != nil {
		_ = unix.Close(e.fd)
	}
}
