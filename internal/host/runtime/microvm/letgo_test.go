package microvm

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/vmm"
)

// clinging is a disk driver that cannot let go of one disk.
type clinging struct {
	disk.Driver
	path     string
	detached []string
	// until is the deadline of the last try at path.
	until   time.Time
	bounded bool
}

var errClings = errors.New("it is in use")

func (c *clinging) Detach(ctx context.Context, live disk.Live) error {
	if live.Path == c.path {
		c.until, c.bounded = ctx.Deadline()
		return errClings
	}
	c.detached = append(c.detached, live.Path)
	return c.Driver.Detach(ctx, live)
}

// switching is a VM that takes every disk.
type switching struct {
	vmm.VM
	on string
}

func (s *switching) Resume(context.Context) error { return nil }
func (s *switching) Kill(context.Context) error   { return nil }
func (s *switching) SwitchDisk(_ context.Context, drive []vmm.Node) error {
	s.on = drive[len(drive)-1].Path
	return nil
}

// A disk that a VM went on from and that cannot be let go of ends nobody: the VM runs on, the next
// thaw tries again, and Stop tells.
func TestGoesOnWithoutLettingGo(t *testing.T) {
	t.Parallel()
	disks := &clinging{Driver: qcow2.New()}
	r := New(nil, disks)
	first, err := r.disk.Open(t.Context(), stackIn(t, r, nil), disk.SizeUnit, t.TempDir(), 1)
	require.NoError(t, err)
	vm := &switching{}
	in := &instance{rt: r, vm: vm, ram: &ram{}, top: top{live: first, index: 1}}
	disks.path = first.Path

	next := func() disk.Live {
		_, err := in.seal(t.Context(), false)
		require.NoError(t, err)
		require.NoError(t, in.Thaw(t.Context()))
		require.Equal(t, vm.on, in.top.live.Path)
		return in.top.live
	}
	second := next()
	require.NotEqual(t, first.Path, second.Path)
	require.Empty(t, disks.detached)
	require.True(t, disks.bounded && time.Until(disks.until) <= letGoTime, "its guest waits")
	third := next()
	require.Equal(t, []string{second.Path}, disks.detached, "only what it went on from")

	err = in.Stop(t.Context())
	require.ErrorIs(t, err, errClings)
	disks.path = ""
	require.NoError(t, in.Stop(t.Context()))
	require.Contains(t, disks.detached, first.Path)
	require.Contains(t, disks.detached, third.Path)
	for _, live := range []disk.Live{first, second, third} {
		_, err := os.Stat(live.Path)
		require.NoError(t, err, "its file stays")
	}
}
