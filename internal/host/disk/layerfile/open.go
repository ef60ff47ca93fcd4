package layerfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

// Open opens a file that must be a regular one. A VM's user may own the file, so neither a link
// nor a FIFO in its place may lead or hold the agent anywhere.
func Open(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, Refused(path, "it is a symbolic link")
	}
	if err != nil {
		return nil, Failed(err, "open", path)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = Refused(path, "it is not a regular file")
	}
	if err != nil {
		_ = f.Close()
		return nil, Failed(err, "open", path)
	}
	return f, nil
}

// Create makes a live disk's file and has write fill it; when that fails there is no file. A
// leftover is unlinked, not truncated: a VM that has not quite died may still hold it. The file
// is not synced: until it is sealed, nothing durable stands on it.
func Create(path string, write func(*os.File) error) error {
	if err := Remove(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Failed(err, "create", path)
	}
	err = write(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return Failed(err, "create", path)
}

// CheckBase refuses a base that is not the file that the caller recorded.
func CheckBase(base disk.Base) (os.FileInfo, error) {
	st, err := os.Stat(base.Path)
	if err != nil {
		return nil, Failed(err, "open base image", base.Path)
	}
	if !st.Mode().IsRegular() || st.Size() != base.SizeBytes {
		return nil, Refused(base.Path, fmt.Sprintf("the base image has %d bytes, its record says %d", st.Size(), base.SizeBytes))
	}
	return st, nil
}

// CheckNotOneOf refuses a new file's path that is one of the files it is to stand on.
func CheckNotOneOf(path string, files []os.FileInfo) error {
	old, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return Failed(err, "create", path)
	}
	for _, f := range files {
		if os.SameFile(old, f) {
			return fault.New(fault.Invalid, "create", path, "the disk is to stand on this very file").
				WithHint("use another index")
		}
	}
	return nil
}

// CheckGrow says why a live disk may not have that many bytes.
func CheckGrow(live disk.Live, sizeBytes, most int64) error {
	cause := ""
	switch {
	case sizeBytes < live.SizeBytes:
		cause = fmt.Sprintf("%d bytes are less than its %d; a disk never shrinks", sizeBytes, live.SizeBytes)
	case sizeBytes%disk.SizeUnit != 0:
		cause = fmt.Sprintf("%d bytes are not a multiple of %d", sizeBytes, disk.SizeUnit)
	case sizeBytes > most:
		cause = fmt.Sprintf("%d bytes are more than the largest disk, %d", sizeBytes, most)
	default:
		return nil
	}
	return fault.New(fault.Invalid, "grow", live.Path, cause)
}

// Remove deletes a file; one that does not exist is removed.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Failed(err, "remove", path)
	}
	return nil
}

// Usage returns the bytes that the file's allocated blocks take.
func Usage(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return 0, Failed(err, "measure", path)
	}
	return st.Blocks * 512, nil
}

// ReadPadded fills b from offset; what lies beyond the end of the file is zeros.
func ReadPadded(f io.ReaderAt, b []byte, offset int64) error {
	n, err := f.ReadAt(b, offset)
	clear(b[n:])
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
