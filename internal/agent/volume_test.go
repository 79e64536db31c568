package agent

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/engine"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/pool"
	"github.com/croftproject/croft/internal/state"
)

// traits is an engine of which nothing else is asked.
type traits struct {
	engine.Engine
	is engine.Traits
}

func (t traits) Traits() engine.Traits { return t.is }

func TestVolumeIsWhatTheEngineTakes(t *testing.T) {
	all := image.Content{Tree: "/i/tree", RootFS: "/i/rootfs", Disk: "/i/disk", DiskFormat: "raw", ISO: "/i/iso"}
	for name, c := range map[string]struct {
		traits  engine.Traits
		content image.Content
		want    pool.Spec
	}{
		"os":      {engine.Traits{Root: engine.RootTree}, all, pool.Spec{Kind: pool.Tree, Base: "/i/tree"}},
		"uml":     {engine.Traits{Root: engine.RootFS}, all, pool.Spec{Kind: pool.File, Base: "/i/rootfs", Format: "raw", BaseFormat: "raw"}},
		"microvm": {engine.Traits{Root: engine.RootFS, ImageKernel: true}, all, pool.Spec{Kind: pool.File, Base: "/i/rootfs", Format: "qcow2", BaseFormat: "raw"}},
		"full":    {engine.Traits{Root: engine.RootDisk}, all, pool.Spec{Kind: pool.File, Base: "/i/disk", Format: "qcow2", BaseFormat: "raw"}},
		"an ISO":  {engine.Traits{Root: engine.RootDisk}, image.Content{ISO: "/i/iso"}, pool.Spec{Kind: pool.File, Format: "raw"}},
		"nothing": {engine.Traits{Root: engine.RootDisk}, image.Content{Tree: "/i/tree"}, pool.Spec{}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{id: "s", local: &local{IDBase: 7}}
			rec := &state.Server{Spec: api.ServerSpec{Disk: api.Disk{Size: api.GiB}}}
			got, err := (&Agent{}).volume(m, rec, traits{is: c.traits}, c.content)
			if c.want == (pool.Spec{}) {
				if !errors.Is(err, image.ErrBad) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			c.want.ID, c.want.Size, c.want.Owner, c.want.Size32 = "s", api.GiB, 7, idRange
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%v, %s", err, diff)
			}
		})
	}
}
