package qcow2

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// failed gives err the operation, the file and, for the causes that a caller acts on, a kind.
func failed(err error, op, path string) error {
	if err == nil {
		return nil
	}
	f := &fault.Error{Kind: fault.KindOf(err), Op: op, Object: path, Err: plain(err), Hint: fault.HintOf(err)}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Kind = fault.ResourceExhausted
		f.Hint = "free space on the file system that holds " + filepath.Dir(path)
	case errors.Is(err, fs.ErrNotExist):
		f.Kind = fault.NotFound
	case errors.Is(err, fs.ErrExist):
		f.Kind = fault.AlreadyExists
	case errors.Is(err, syscall.EOPNOTSUPP):
		f.Kind = fault.FailedPrecondition
		f.Hint = "keep sandboxes on ext4, xfs, btrfs or tmpfs"
	}
	return f
}

// plain drops a PathError's operation and path: failed says them in Roost's words.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// refused is the error for an image that is not of the dialect.
func refused(path, cause string) error {
	return fault.New(fault.FailedPrecondition, "use", path, cause).
		WithHint("the image is damaged or was written by something other than Roost and its VMs")
}
