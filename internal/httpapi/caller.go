package httpapi

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
)

type callerKey struct{}

// peer is what the kernel says of the process at the other end of a unix socket (unix(7), SO_PEERCRED).
type peer struct{ cred *unix.Ucred }

type peerKey struct{}

// connContext notes the peer of a connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	var p peer
	err = raw.Control(func(fd uintptr) {
		p.cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || p.cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// identifyPeer takes root, and the user that the daemon itself runs as, for the operator, and refuses everyone else.
func identifyPeer(r *http.Request) (Caller, error) {
	p, ok := r.Context().Value(peerKey{}).(peer)
	if !ok {
		return Caller{}, api.Errorf(api.CodeForbidden, "who you are is not known on this connection; use the unix socket, as root")
	}
	switch int(p.cred.Uid) {
	case 0:
		return Caller{Name: "root", Operator: true}, nil
	case os.Geteuid():
		return Caller{Name: fmt.Sprintf("uid:%d", p.cred.Uid), Operator: true}, nil
	}
	return Caller{Name: fmt.Sprintf("uid:%d", p.cred.Uid)},
		api.Errorf(api.CodeForbidden, "user %d may not use this socket; run the command as root", p.cred.Uid)
}

// callerOf is who asks; the middleware has put it there.
func callerOf(ctx context.Context) Caller {
	who, _ := ctx.Value(callerKey{}).(Caller)
	return who
}

// needOperator refuses callers who are not the operator.
func needOperator(ctx context.Context) error {
	if callerOf(ctx).Operator {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "only the operator may do this")
}
