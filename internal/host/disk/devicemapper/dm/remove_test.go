package dm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
)

func TestRemoveWaitsForTheUser(t *testing.T) {
	t.Parallel()
	c := control(t)
	info := mapped(t, c, false, dm.Zero(0, sectors))
	f := open(t, c, info, os.O_RDONLY)
	before := c.Calls()["remove"]
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	go func() { done <- c.Remove(ctx, info.Name) }()
	require.Eventually(t, func() bool { return c.Calls()["remove"] >= before+4 }, limit, time.Millisecond, "it tries again")
	select {
	case err := <-done:
		require.Fail(t, "removed while open", "%v", err)
	default:
	}
	require.NoError(t, f.Close())
	require.NoError(t, <-done)
	_, err := c.Info(info.Name)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

func TestRemoveEndsDeferred(t *testing.T) {
	t.Parallel()
	c := control(t)
	info := mapped(t, c, false, dm.Zero(0, sectors))
	f := open(t, c, info, os.O_RDONLY)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := c.Remove(ctx, info.Name)
	require.ErrorIs(t, err, dm.ErrDeferred)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	after, err := c.Info(info.Name)
	require.NoError(t, err)
	require.True(t, after.Deferred)
	require.Equal(t, 1, after.OpenCount)
	require.ErrorIs(t, c.Remove(ctx, info.Name), dm.ErrDeferred, "asked again, it says the same")

	// Its name can be had at once.
	to, _ := newName()
	require.NoError(t, c.Rename(info.Name, to))
	again, err := c.Make(t.Context(), info.Name, "", []dm.Target{dm.Zero(0, 8)}, false)
	require.NoError(t, err)
	require.NotEqual(t, info.Dev, again.Dev)
	require.NoError(t, f.Close())
	gone(t, c, to)
}

// gone waits until the kernel has removed a device.
func gone(t *testing.T, c *dm.Control, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := c.Info(name)
		return fault.Is(err, fault.NotFound)
	}, limit, time.Millisecond)
}

// TestRemoveReturnsOtherErrorsAtOnce: a name that the kernel refuses is not tried again.
func TestRemoveReturnsOtherErrorsAtOnce(t *testing.T) {
	t.Parallel()
	c := control(t)
	err := c.Remove(t.Context(), "")
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	err = c.Remove(t.Context(), strings.Repeat("x", 200))
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	missing, _ := newName()
	require.NoError(t, c.Remove(t.Context(), missing))
}

// TestHeldOpen: 200 devices are removed while others have them open for up to 5 s; a Remove that
// has no time for that ends deferred. None is left, none hangs, and a device of somebody else's
// is not touched.
func TestHeldOpen(t *testing.T) {
	t.Parallel()
	const (
		devices = 200
		longest = 5 * time.Second
		patient = longest / 2
	)
	c := control(t)
	foreign := fmt.Sprintf("%s-foreign-%s", prefix, strings.Repeat("f", 80))
	_, err := c.Make(t.Context(), foreign, "", []dm.Target{dm.Zero(0, 8)}, false)
	require.NoError(t, err)
	t.Cleanup(func() { remove(t, c, foreign) })

	base := attach(t, file(t, mb, "base"), true)
	infos := make([]dm.Info, devices)
	for i := range infos {
		name, uuid := newName()
		name += strings.Repeat("-", 60) // so that a list of them needs a larger buffer
		infos[i], err = c.Make(t.Context(), name, uuid, []dm.Target{dm.Linear(0, sectors, base, 0)}, true)
		require.NoError(t, err)
	}
	list, err := c.List()
	require.NoError(t, err)
	require.Greater(t, len(list), devices)

	var users, removers sync.WaitGroup
	results := make([]error, devices)
	for i, info := range infos {
		f := open(t, c, info, os.O_RDONLY)
		hold := rand.N(longest)
		users.Go(func() {
			time.Sleep(hold)
			_ = f.Close()
		})
		removers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patient)
			defer cancel()
			results[i] = c.Remove(ctx, info.Name)
		})
	}
	removers.Wait()
	later := 0
	for _, err := range results {
		if errors.Is(err, dm.ErrDeferred) {
			later++
			continue
		}
		require.NoError(t, err)
	}
	users.Wait()
	for _, info := range infos {
		gone(t, c, info.Name)
	}
	_, err = c.Info(foreign)
	require.NoError(t, err)
	t.Logf("%d removed in time, %d deferred, 0 left; %d remove ioctls", devices-later, later, c.Calls()["remove"])
}
