package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/guest/process"
	"github.com/roosthq/roost/internal/guest/reaper"
)

// helper runs programs of the guest's own, outside the user's cgroup: they work while it is
// frozen. A program that outlives ctx is killed with its session.
func helper(r *reaper.Reaper) func(ctx context.Context, argv ...string) error {
	return func(ctx context.Context, argv ...string) error {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer func() { _ = null.Close() }()
		pid, ended, err := r.Start(func() (int, error) {
			return syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
				Dir:   "/",
				Env:   []string{"PATH=" + process.DefaultPath, "HOME=/root"},
				Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
				Sys:   &syscall.SysProcAttr{Setsid: true},
			})
		})
		if err != nil {
			return fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
		}
		select {
		case status := <-ended:
			if !status.Exited() || status.ExitStatus() != 0 {
				return fmt.Errorf("%s failed with exit status %d", filepath.Base(argv[0]), status.ExitStatus())
			}
			return nil
		case <-ctx.Done():
			_ = r.Signal(pid, -pid, syscall.SIGKILL)
			<-ended
			return errors.Join(fmt.Errorf("%s took too long", filepath.Base(argv[0])), ctx.Err())
		}
	}
}
