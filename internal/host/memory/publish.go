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
func publish(dst string, write func(*os.File) error) error {
	_, err := publishIn(filepath.Dir(dst), dst, func(f *os.File) (string, error) {
		return filepath.Base(dst), write(f)
	})
	return err
}

// publishIn is publish of a file whose name depends on what is written; object is for errors.
func publishIn(dir, object string, write func(*os.File) (name string, err error)) (path string, err error) {
	f, err := os.CreateTemp(dir, "."+filepath.Base(object)+".*.tmp")
	if err != nil {
		return "", diskError(err, "create", object)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	name, err := write(f)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", diskError(err, "write", object)
	}
	path = filepath.Join(dir, name)
	if err := os.Rename(f.Name(), path); err != nil {
		return "", diskError(err, "publish", object)
	}
	return path, syncDir(dir)
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
