package layerfile

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// Failed gives err the operation, the file and, for the causes that a caller acts on, a kind.
func Failed(err error, op, path string) error {
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

// plain drops a PathError's operation and path: Failed says them in Roost's words.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// Refused is the error for a file that is not what Roost and its VMs write.
func Refused(path, cause string) error {
	return fault.New(fault.FailedPrecondition, "use", path, cause).
		WithHint("the image is damaged or was written by something other than Roost and its VMs")
}

// Lost is the error for a layer whose content is not what it was.
func Lost(op, path, cause string) error {
	return fault.New(fault.DataLoss, op, "layer "+path, cause).
		WithHint("put back a copy of the file, or use an older snapshot")
}
