package store

import (
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// isServerDown knows the errors by which etcd says that it is not there, has no leader, or is too busy.
func isServerDown(err error) bool {
	for _, down := range []error{
		etcderrors.ErrStopped, etcderrors.ErrTimeout, etcderrors.ErrTimeoutDueToLeaderFail, etcderrors.ErrNoLeader,
		etcderrors.ErrNoSpace, etcderrors.ErrTooManyRequests,
		rpctypes.ErrStopped, rpctypes.ErrTimeout, rpctypes.ErrNoLeader, rpctypes.ErrTooManyRequests,
		rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost, rpctypes.ErrNotCapable,
	} {
		if errors.Is(err, down) {
			return true
		}
	}
	// In this process, raft's own error comes through as a status without a code.
	return status.Code(err) == codes.Unknown && status.Convert(err).Message() == raft.ErrStopped.Error()
}
