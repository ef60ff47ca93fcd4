package loop

import (
	"errors"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
)

// CreateSparse makes a file of that size without a block of its own, and of exactly that mode.
// When it fails there is no such file; one that was there before is left alone
// (fault.AlreadyExists).
func CreateSparse(path string, size int64, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return failed(err, "create", path)
	}
	err = errors.Join(shape(file, size, mode), finish(file))
	if err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return failed(err, "create", path)
}

func shape(file *os.File, size int64, mode os.FileMode) error {
	if err := failpoint.Hit("devicemapper.sparse.truncate"); err != nil {
		return err
	}
	if err := file.Truncate(size); err != nil {
		return err
	}
	return file.Chmod(mode) // past the umask
}

func finish(file *os.File) error {
	return errors.Join(file.Close(), failpoint.Hit("devicemapper.sparse.close"))
}
