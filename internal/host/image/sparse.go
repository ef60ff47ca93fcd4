package image

import (
	"bytes"
	"errors"
	"io"
	"os"
)

const (
	pageBytes  = 4096
	chunkBytes = 1 << 20
)

var zeroPage [pageBytes]byte

// WriteSparse copies size bytes of src to dst and leaves a hole for every page that is zero.
// dst is truncated to size; what it held before is lost. It does not sync.
func WriteSparse(dst *os.File, src io.ReaderAt, size int64) error {
	// To zero first: old data must not show through a hole.
	if err := errors.Join(dst.Truncate(0), dst.Truncate(size)); err != nil {
		return fail(err, "write sparse file", dst.Name())
	}
	buf := make([]byte, chunkBytes)
	for off := int64(0); off < size; off += chunkBytes {
		chunk := buf[:min(chunkBytes, size-off)]
		if n, err := src.ReadAt(chunk, off); n < len(chunk) {
			return fail(errors.Join(err, io.ErrUnexpectedEOF), "read for sparse file", dst.Name())
		}
		if err := writeData(dst, chunk, off); err != nil {
			return fail(err, "write sparse file", dst.Name())
		}
	}
	return nil
}

// writeData writes the runs of pages in chunk that are not zero.
func writeData(dst io.WriterAt, chunk []byte, off int64) error {
	for start := 0; start < len(chunk); {
		end := start
		for end < len(chunk) && !zeroAt(chunk, end) {
			end += pageBytes
		}
		end = min(end, len(chunk))
		if end > start {
			if _, err := dst.WriteAt(chunk[start:end], off+int64(start)); err != nil {
				return err
			}
		}
		for start = end; start < len(chunk) && zeroAt(chunk, start); {
			start += pageBytes
		}
	}
	return nil
}

func zeroAt(chunk []byte, at int) bool {
	page := chunk[at:min(at+pageBytes, len(chunk))]
	return bytes.Equal(page, zeroPage[:len(page)])
}
