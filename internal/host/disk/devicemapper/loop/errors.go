package loop

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// failed gives err the operation, the object and, for the causes that a caller acts on, a kind. What
// has them already stays as it is.
func failed(err error, op, path string) error {
	var told *fault.Error
	if err == nil || errors.As(err, &told) {
		return err
	}
	f := &fault.Error{Kind: fault.KindOf(err), Op: op, Object: path, Err: plain(err), Hint: fault.HintOf(err)}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Kind, f.Hint = fault.ResourceExhausted, "free space on the file system that holds "+filepath.Dir(path)
	case errors.Is(err, syscall.EFBIG):
		f.Kind, f.Hint = fault.Invalid, "the file system has no files of that size"
	case errors.Is(err, syscall.EINVAL):
		f.Kind = fault.Invalid
	case errors.Is(err, fs.ErrNotExist):
		f.Kind = fault.NotFound
	case errors.Is(err, fs.ErrExist):
		f.Kind = fault.AlreadyExists
	case errors.Is(err, fs.ErrPermission):
		f.Kind = fault.PermissionDenied
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

func inUse(op, object, cause, hint string) error {
	return fault.New(fault.FailedPrecondition, op, object, cause).WithHint(hint)
}
