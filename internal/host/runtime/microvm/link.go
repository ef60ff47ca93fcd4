package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// Link implements runtime.Runtime. A name in dir says what the file is in the capture; where
// another file has that name already, in a directory that was linked into before, a number is
// added.
func (r *Runtime) Link(ctx context.Context, c runtime.Capture, dir, root string) (_ json.RawMessage, err error) {
	var undos undo.Stack
	defer rollback(ctx, &undos, &err)
	rec, err := parseCapture(c)
	if err != nil {
		return nil, err
	}
	l := linker{dir: filepath.Clean(dir), root: filepath.Clean(root), undos: &undos}
	if err = errors.Join(ctx.Err(), l.linkAll(&rec)); err != nil {
		return nil, fault.Wrap(err, "link capture into", dir)
	}
	if err = syncDir(dir); err != nil {
		return nil, err
	}
	return json.Marshal(rec.relativeTo(l.dir))
}

// linker gives the files of a capture names in a directory.
type linker struct {
	dir, root string
	undos     *undo.Stack
}

func (l *linker) linkAll(rec *captureRecord) error {
	err := errors.Join(
		l.link(&rec.State, paths.DeviceState),
		l.link(&rec.MemoryBase, templateMemory),
		l.link(&rec.MemoryMap, paths.MemoryMap),
		l.link(&rec.Disk.Base.Path, "base"),
	)
	for i, path := range rec.Layers {
		// A layer that is called after its content must go on to be.
		name := memory.LayerNameIn(filepath.Base(path))
		if name == "" {
			name = fmt.Sprintf("memory-%d.layer", i)
		}
		err = errors.Join(err, l.link(&rec.Layers[i], name))
	}
	for i := range rec.Disk.Layers {
		err = errors.Join(err, l.link(&rec.Disk.Layers[i].Path, fmt.Sprintf("disk-%d.layer", i)))
	}
	return err
}

// link makes *path one in the directory, if it lies below the root and not there already. By
// whatever name the record has it: a file of a sandbox that was left where it is, because the
// data directory was called otherwise when it was written down, would go with that sandbox.
func (l *linker) link(path *string, name string) error {
	if *path == "" {
		return nil
	}
	rel, below, err := paths.Below(*path, l.root)
	if err != nil {
		return linkError(err, *path)
	}
	if !below {
		return nil
	}
	from := filepath.Join(l.root, rel)
	rel, below, err = paths.Below(from, l.dir)
	switch {
	case err != nil:
		return linkError(err, *path)
	case below:
		*path = filepath.Join(l.dir, rel)
		return nil
	}
	*path, err = l.linkAs(from, name)
	return err
}

// linkAs gives a file a name in the directory, or finds the one that it has there.
func (l *linker) linkAs(from, name string) (string, error) {
	for n := 1; ; n++ {
		to := filepath.Join(l.dir, name)
		if n > 1 {
			to = filepath.Join(l.dir, fmt.Sprintf("%d-%s", n, name))
		}
		err := os.Link(from, to)
		switch {
		case err == nil:
			l.undos.Push("link "+to, func(context.Context) error { return os.Remove(to) })
		case errors.Is(err, os.ErrExist):
			if !sameFile(from, to) {
				continue
			}
		default:
			return "", linkError(err, from)
		}
		return to, nil
	}
}

func sameFile(a, b string) bool {
	one, err := os.Lstat(a)
	if err != nil {
		return false
	}
	other, err := os.Lstat(b)
	return err == nil && os.SameFile(one, other)
}

// linkError gives the causes that somebody can act on their kinds.
func linkError(err error, path string) error {
	f := &fault.Error{Kind: fault.Internal, Op: "link", Object: path, Err: cause(err)}
	switch {
	case errors.Is(err, os.ErrNotExist):
		f.Kind, f.Hint = fault.DataLoss, diskHint
	case errors.Is(err, syscall.EXDEV):
		f.Kind, f.Hint = fault.FailedPrecondition, "keep snapshots and sandboxes on one file system"
	case errors.Is(err, syscall.EMLINK):
		f.Kind, f.Hint = fault.ResourceExhausted, "it has as many names as the file system allows: delete forks or snapshots of it"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Kind, f.Hint = fault.ResourceExhausted, "free space on the file system that holds "+path
	}
	return f
}

// cause is err without the names of files that fault.Error already says.
func cause(err error) error {
	var (
		link *os.LinkError
		path *os.PathError
	)
	switch {
	case errors.As(err, &link):
		return link.Err
	case errors.As(err, &path):
		return path.Err
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fault.Wrap(err, "open", "directory "+dir)
	}
	return fault.Wrap(errors.Join(d.Sync(), d.Close()), "sync", "directory "+dir)
}
