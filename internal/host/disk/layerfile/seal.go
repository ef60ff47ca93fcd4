package layerfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/undo"
)

// Seal makes a file read-only, the agent's own and durable, and returns its sum; one sync serves
// all three, as it is what a pause waits for, and the sum is made meanwhile. What fails, ready
// included, leaves a live disk with the mode it had. The driver's ready is called when the file
// is locked, before it is synced.
func Seal(ctx context.Context, f *os.File, ready func() error) (string, error) {
	var back undo.Stack
	sum, err := lockAndSync(ctx, f, &back, ready)
	if err != nil {
		return "", Failed(errors.Join(err, back.Rollback(ctx)), "seal", f.Name())
	}
	return sum, nil
}

func lockAndSync(ctx context.Context, f *os.File, back *undo.Stack, ready func() error) (sum string, err error) {
	if err := lock(f, back); err != nil {
		return "", err
	}
	if err := ready(); err != nil {
		return "", err
	}
	var both errgroup.Group
	both.Go(f.Sync)
	both.Go(func() (err error) {
		sum, err = Sum(ctx, f)
		return err
	})
	if err := both.Wait(); err != nil {
		return "", err
	}
	return sum, syncDir(filepath.Dir(f.Name()))
}

func lock(f *os.File, back *undo.Stack) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	back.Push("mode", func(context.Context) error { return f.Chmod(st.Mode()) })
	if err := f.Chmod(0o400); err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	back.Push("owner", func(context.Context) error { return f.Chown(int(owner.Uid), int(owner.Gid)) })
	return f.Chown(os.Geteuid(), os.Getegid())
}
