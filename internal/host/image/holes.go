package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// extent is a part of a file.
type extent struct{ at, length int64 }

func (e extent) end() int64 { return e.at + e.length }

// hashSparse is a hash of a file's content that does not read its holes: the sha256 of the sha256 of
// all blocks that are not zero, and of how many zero and other blocks follow one another. A hole and
// written zeros are the same, so a copy of the file has the same hash wherever its holes went.
func hashSparse(path string) (string, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", 0, err
	}
	parts, err := dataOf(path, info.Size())
	if err != nil {
		return "", 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }() // read only
	h := newSparseHash()
	for _, p := range parts {
		// Whole blocks, so that it does not matter where a file system lets a hole begin.
		begin, end := p.at/blockBytes*blockBytes, min((p.end()+blockBytes-1)/blockBytes*blockBytes, info.Size())
		if err := h.read(f, max(begin, h.at), end); err != nil {
			return "", 0, err
		}
	}
	return h.sum(info.Size()), info.Size(), nil
}

// sparseHash is the state of one hashSparse.
type sparseHash struct {
	data, runs hash.Hash
	at         int64 // where the data ended so far
	run        int64 // bytes of the data that ends there
	buf        []byte
}

func newSparseHash() *sparseHash {
	return &sparseHash{data: sha256.New(), runs: sha256.New(), buf: make([]byte, 256*blockBytes)}
}

func (h *sparseHash) read(f *os.File, at, end int64) error {
	for at < end {
		n, err := f.ReadAt(h.buf[:min(int64(len(h.buf)), end-at)], at)
		if err != nil && (!errors.Is(err, io.EOF) || at+int64(n) != end) {
			return err
		}
		for off := 0; off < n; off += blockBytes {
			block := h.buf[off:min(off+blockBytes, n)]
			if !bytes.Equal(block, zeroBlock[:len(block)]) {
				h.block(block, at+int64(off))
			}
		}
		at += int64(n)
	}
	return nil
}

func (h *sparseHash) block(block []byte, at int64) {
	if at != h.at {
		h.endRun(at)
	}
	_, _ = h.data.Write(block)
	h.run += int64(len(block))
	h.at = at + int64(len(block))
}

// endRun notes the data that has ended and the zeros behind it, up to at.
func (h *sparseHash) endRun(at int64) {
	var lengths [16]byte
	binary.LittleEndian.PutUint64(lengths[:], uint64(h.run))
	binary.LittleEndian.PutUint64(lengths[8:], uint64(at-h.at))
	_, _ = h.runs.Write(lengths[:])
	h.run, h.at = 0, at
}

func (h *sparseHash) sum(size int64) string {
	h.endRun(size)
	_, _ = h.runs.Write(h.data.Sum(nil))
	return hex.EncodeToString(h.runs.Sum(nil))
}

// leastHole: holes that are smaller in all are not worth it.
const leastHole = 64 << 10

// hasHoles says whether a file takes much less than its size.
func hasHoles(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && st.Blocks*512+leastHole <= st.Size
}

// dataOf are the parts of a file that hold data, as its file system tells them.
func dataOf(path string, size int64) ([]extent, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	var parts []extent
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole
			break
		}
		if err != nil {
			return nil, &fs.PathError{Op: "find data in", Path: path, Err: err}
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, &fs.PathError{Op: "find holes in", Path: path, Err: err}
		}
		at = min(hole, size)
		if data < at {
			parts = append(parts, extent{data, at - data})
		}
	}
	return parts, nil
}
