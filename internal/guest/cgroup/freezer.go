package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
)

// freezer stops and continues every process below a cgroup.
type freezer interface {
	// freeze returns when all are stopped; after an error the caller thaws.
	freeze(ctx context.Context) error
	thaw() error
}

// newFreezer is the kernel's where it has one. gVisor's kernel has none (and would not let a
// file be made in its place): there processes are stopped by signals.
func newFreezer(t *Tree) (freezer, error) {
	_, err := os.Stat(filepath.Join(t.path, "cgroup.freeze"))
	switch {
	case err == nil:
		return kernelFreezer{t}, nil
	case errors.Is(err, fs.ErrNotExist):
		return newSignalFreezer(t)
	}
	return nil, fault.Wrap(err, "look for", "cgroup freezer")
}

// kernelFreezer is cgroup.freeze.
type kernelFreezer struct{ tree *Tree }

func (k kernelFreezer) freeze(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err // the kernel may be quicker than the look at what it did
	}
	if err := k.tree.write("cgroup.freeze", "1"); err != nil {
		return err
	}
	return k.tree.waitEvent(ctx, "frozen 1")
}

func (k kernelFreezer) thaw() error { return k.tree.write("cgroup.freeze", "0") }
