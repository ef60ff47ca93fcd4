package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
)

// Link implements runtime.Runtime. A checkpoint's files all lie in its directory and are named
// relative to it, so the record says the same wherever they are.
func (r *Runtime) Link(ctx context.Context, c runtime.Capture, dir, root string) (json.RawMessage, error) {
	rec, err := parseCapture(c)
	if err == nil {
		err = checkSizes(c.Dir, rec.Files)
	}
	from := ""
	if err == nil {
		from, err = below(c.Dir, root)
	}
	if err != nil {
		return nil, fault.Wrap(err, "link", "capture")
	}
	for _, f := range rec.Files {
		if err := errors.Join(ctx.Err(), linkFile(from, dir, f.Name)); err != nil {
			return nil, fault.Wrap(err, "link", "capture")
		}
	}
	return c.Record, fault.Wrap(syncDir(dir), "sync", dir)
}

// below is a checkpoint's directory by its name below root. It cannot stay where it is and be
// named from elsewhere.
func below(dir, root string) (string, error) {
	rel, ok, err := paths.Below(dir, root)
	if err == nil && !ok {
		err = fault.New(fault.Invalid, "link", dir, "it does not lie below "+root)
	}
	return filepath.Join(root, rel), err
}

// linkFile is idempotent: the same file under the same name is what was wanted.
func linkFile(from, to, name string) error {
	source, target := filepath.Join(from, name), filepath.Join(to, name)
	err := os.Link(source, target)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	a, aerr := os.Lstat(source)
	b, berr := os.Lstat(target)
	if aerr == nil && berr == nil && os.SameFile(a, b) {
		return nil
	}
	return errors.Join(err, aerr, berr)
}

// Salvage implements runtime.Runtime: there is nothing to make a capture of. What the overlay's
// file store holds means nothing without the sentry's memory.
func (r *Runtime) Salvage(_ context.Context, spec runtime.Spec, _ json.RawMessage, _ string) (json.RawMessage, error) {
	return nil, fault.New(fault.FailedPrecondition, "salvage", "disk of sandbox "+spec.ID,
		"in gVisor memory and disk are one: the disk ended with its sandbox").
		WithHint("`roost resume --cold` goes back to the last save")
}
