package layerfile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// holeSize is the grain at which a copy keeps zeros as holes: a file system block.
	holeSize = 4096
	// copySize is copied at once.
	copySize = 64 << 10
)

// NextData returns the next stretch of data at or after from, within to; to and to for none.
func NextData(f *os.File, from, to int64) (data, hole int64, err error) {
	data, err = f.Seek(from, unix.SEEK_DATA)
	if errors.Is(err, syscall.ENXIO) || err == nil && data >= to {
		return to, to, nil
	}
	if err != nil {
		return 0, 0, err
	}
	hole, err = f.Seek(data, unix.SEEK_HOLE)
	return data, min(hole, to), err
}

// Copy copies the data of src between from and to to the same place in dst, where nothing has
// been written yet. Holes and blocks of zeros stay holes.
func Copy(ctx context.Context, dst io.WriterAt, src *os.File, from, to int64) error {
	buf := make([]byte, copySize)
	for from < to {
		data, hole, err := NextData(src, from, to)
		if err != nil {
			return err
		}
		for at := data; at < hole; at += copySize {
			b := buf[:min(copySize, hole-at)]
			if err := errors.Join(ctx.Err(), ReadPadded(src, b, at), WriteSparse(dst, b, at)); err != nil {
				return err
			}
		}
		from = hole
	}
	return nil
}

// WriteSparse writes b at offset but for the blocks that are all zeros.
func WriteSparse(w io.WriterAt, b []byte, offset int64) error {
	for start := 0; start < len(b); {
		end := start
		for end < len(b) && !IsZero(block(b, end)) {
			end += len(block(b, end))
		}
		if end > start {
			if _, err := w.WriteAt(b[start:end], offset+int64(start)); err != nil {
				return err
			}
		}
		start = end + holeSize // The block at end, if there is one, is a hole.
	}
	return nil
}

func block(b []byte, at int) []byte { return b[at:min(at+holeSize, len(b))] }

var zeros [64 << 10]byte

// IsZero tells whether b is all zeros. It is for slices of up to 64 KiB.
func IsZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
