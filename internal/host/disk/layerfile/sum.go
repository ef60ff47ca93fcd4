package layerfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

// sumBuffer is read at once: what is larger leaves the core's cache before it is hashed.
const sumBuffer = 1 << 20

// Sum is the XXH3-128 of a file's plain content, high half first: what any program that reads
// the file from end to end gets. Holes are not read, but count as the zeros that they are, so
// a copy that has them elsewhere has the same sum.
func Sum(ctx context.Context, f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := xxh3.New128()
	buf := make([]byte, sumBuffer)
	for at := int64(0); at < st.Size(); {
		data, hole, err := NextData(f, at, st.Size())
		if err != nil {
			return "", err
		}
		sumZeros(h, data-at)
		for at = data; at < hole; {
			b := buf[:min(sumBuffer, hole-at)]
			if _, err := f.ReadAt(b, at); err != nil {
				return "", err
			}
			_, _ = h.Write(b) // a hash takes everything
			at += int64(len(b))
			if err := ctx.Err(); err != nil {
				return "", err
			}
		}
	}
	s := h.Sum128()
	return fmt.Sprintf("%016x%016x", s.Hi, s.Lo), nil
}

func sumZeros(h *xxh3.Hasher128, n int64) {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		_, _ = h.Write(zeros[:part]) // a hash takes everything
		n -= part
	}
}

// Verify compares a layer's file with its sum. A layer without a sum passes.
func Verify(ctx context.Context, l disk.Layer) error {
	if l.Sum == "" {
		return nil
	}
	f, err := Open(l.Path, os.O_RDONLY)
	if fault.Is(err, fault.NotFound) {
		return Lost("verify", l.Path, "the layer is missing")
	}
	if err != nil {
		return Failed(err, "verify", l.Path)
	}
	defer func() { _ = f.Close() }() // only read
	// A layer is read once now and, if at all, in other places later.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	have, err := Sum(ctx, f)
	switch {
	case errors.Is(err, syscall.EIO):
		return Lost("verify", l.Path, "it cannot be read: "+err.Error())
	case err != nil:
		return Failed(err, "verify", l.Path)
	case have != l.Sum:
		return Lost("verify", l.Path, fmt.Sprintf("its checksum is %s, not %s", have, l.Sum))
	}
	return nil
}

// VerifyAll is for what layers are about to be copied from: a copy would make damage look whole.
func VerifyAll(ctx context.Context, list []disk.Layer) error {
	for _, l := range list {
		if err := Verify(ctx, l); err != nil {
			return err
		}
	}
	return nil
}
