package memory

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// publish lets write fill a temporary file and then makes it visible as dst: synced, renamed,
// and the folder synced so that the name survives a power cut. On failure nothing is left.
func publish(dst string, write func(*os.File) error) (err error) {
	dir := filepath.Dir(dst)
	f, err := os.CreateTemp(dir, "."+filepath.Base(dst)+".*.tmp")
	if err != nil {
		return diskError(err, "create", dst)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return diskError(err, "write", dst)
	}
	if err := os.Rename(f.Name(), dst); err != nil {
		return diskError(err, "publish", dst)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fault.Wrap(err, "open folder", dir)
	}
	return fault.Wrap(errors.Join(d.Sync(), d.Close()), "sync folder", dir)
}

// diskError gives a full disk its own kind, so that a pause that hits one can say so.
func diskError(err error, op, object string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return &fault.Error{Kind: fault.ResourceExhausted, Op: op, Object: object, Err: err, Hint: "free space on the disk that holds " + object}
	case errors.Is(err, os.ErrNotExist):
		return &fault.Error{Kind: fault.NotFound, Op: op, Object: object, Err: err}
	default:
		return fault.Wrap(err, op, object)
	}
}
