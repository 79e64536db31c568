package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"
)

// Sizes of the embedded member. They suit one host's records (some tens of MiB at most) and keep the daemon small.
const (
	walSegment      = 16 << 20 // preallocated, twice
	quota           = 1 << 30  // above it etcd takes no more writes
	maxRequest      = 4 << 20
	snapshotEntries = 2000 // entries of the log kept in memory at most, with catchUp
	catchUpEntries  = 100  // there is no follower to catch up
	history         = 15 * time.Minute
	defragAbove     = 32 // MiB to be won before a start spends time on it
)

var walSize sync.Once

// member is an etcd server in this process, without any listener: only this process reaches it.
type member struct {
	server *etcdserver.EtcdServer
}

func startMember(ctx context.Context, dir string, logger *slog.Logger) (*member, *clientv3.Client, error) {
	walSize.Do(func() { wal.SegmentSizeBytes = walSegment })
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	if err := checkUnused(dir); err != nil {
		return nil, nil, err
	}
	cfg, err := memberConfig(dir, logger)
	if err != nil {
		return nil, nil, err
	}
	server, err := etcdserver.NewServer(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("open the store in %s: %w", dir, err)
	}
	server.Start()
	m := &member{server: server}
	select {
	case <-server.ReadyNotify():
	case <-server.StopNotify():
		return nil, nil, fmt.Errorf("open the store in %s: it stopped at once", dir)
	case <-ctx.Done():
		m.stop()
		return nil, nil, fmt.Errorf("open the store in %s: %w", dir, ctx.Err())
	}
	return m, v3client.New(server), nil
}

// checkUnused fails at once where another process has the store open; etcd itself would wait for it without end.
// bbolt holds an flock(2) on its file.
func checkUnused(dir string) error {
	file, err := os.Open(filepath.Join(dir, "member", "snap", "db"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return err
	}
	defer file.Close() // closing ends the lock
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("the store in %s is in use by another process: %w", dir, err)
	}
	return nil
}

func memberConfig(dir string, logger *slog.Logger) (config.ServerConfig, error) {
	const name = "croft"
	// The peer URL is the member's identity in a cluster of one; nothing listens on it.
	self := types.URLs{url.URL{Scheme: "unix", Host: "croft:0"}}
	log := zapTo(logger)
	gate := features.NewDefaultServerFeatureGate(name, log)
	mutable, ok := gate.(featuregate.MutableFeatureGate)
	if !ok {
		return config.ServerConfig{}, fmt.Errorf("etcd's feature gates can't be set")
	}
	// Without checkpoints every start of the daemon would give leases their whole time again.
	err := mutable.SetFromMap(map[string]bool{
		string(features.LeaseCheckpoint): true, string(features.LeaseCheckpointPersist): true,
	})
	if err != nil {
		return config.ServerConfig{}, err
	}
	_, initialized := os.Stat(filepath.Join(dir, "member", "wal"))
	return config.ServerConfig{
		Name: name, DataDir: dir, Logger: log, ServerFeatureGate: gate,
		PeerURLs: self, ClientURLs: self,
		InitialPeerURLsMap:  types.URLsMap{name: self},
		InitialClusterToken: name, NewCluster: initialized != nil,
		SnapshotCount: snapshotEntries, SnapshotCatchUpEntries: catchUpEntries,
		MaxSnapFiles: 2, MaxWALFiles: 2,
		BackendFreelistType: bbolt.FreelistMapType,
		// There is nobody to be elected against: the shortest election makes the shortest start.
		TickMs: 50, ElectionTicks: 2, InitialElectionTickAdvance: true,
		AutoCompactionMode: "periodic", AutoCompactionRetention: history,
		QuotaBackendBytes: quota, MaxTxnOps: 1024, MaxRequestBytes: maxRequest,
		WarningApplyDuration: time.Second, WarningUnaryRequestDuration: 2 * time.Second,
		AuthToken: "simple", BcryptCost: 10, TokenTTL: 300,
		PreVote: true, StrictReconfigCheck: true, MaxLearners: 1,
		LeaseCheckpointInterval:           time.Minute,
		BootstrapDefragThresholdMegabytes: defragAbove,
		V2Deprecation:                     config.V2DeprDefault,
		Metrics:                           "basic",
	}, nil
}

func (m *member) stop() { m.server.Stop() }
