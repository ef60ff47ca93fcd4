package cow

import (
	"encoding/binary"
	"os"

	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Writer writes a copy-on-write file front to back, a metadata area and its data at a time;
// the header comes last, so that a file that was not finished is none.
type Writer struct {
	file *os.File
	area int64
	n    int // exceptions in buf
	// buf is one area and the chunks that follow it.
	buf []byte
}

// NewWriter writes to an empty file.
func NewWriter(f *os.File) *Writer {
	return &Writer{file: f, buf: make([]byte, stride*ChunkSize)}
}

// Put adds one chunk of the disk, which must not be there yet. Zeros take no room but for
// their place in the list.
func (w *Writer) Put(chunk int64, data []byte) error {
	entry := w.buf[w.n*entrySize:]
	binary.LittleEndian.PutUint64(entry, uint64(chunk))
	binary.LittleEndian.PutUint64(entry[8:], uint64(areaAt(w.area)+1+int64(w.n)))
	copy(w.buf[(1+w.n)*ChunkSize:], data[:ChunkSize])
	w.n++
	if w.n < perArea {
		return nil
	}
	return w.flush()
}

// flush writes the area with what follows it and begins the next.
func (w *Writer) flush() error {
	used := w.buf[:(1+w.n)*ChunkSize]
	if err := layerfile.WriteSparse(w.file, used, areaAt(w.area)*ChunkSize); err != nil {
		return err
	}
	clear(w.buf)
	w.area, w.n = w.area+1, 0
	return nil
}

// Finish writes what is left and cuts the file off at its end. It does not sync.
func (w *Writer) Finish() error {
	end := (areaAt(w.area) + 1 + int64(w.n)) * ChunkSize
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.file.Truncate(end); err != nil {
		return err
	}
	_, err := w.file.WriteAt(encodeHeader(), 0)
	return err
}

// Create fills a new file for a live disk of diskBytes: nothing changed yet, but for the end of a
// base whose size is not in sectors (see Tail).
func Create(f *os.File, diskBytes int64, tail *Chunk) error {
	w := NewWriter(f)
	if tail != nil {
		if err := w.Put(tail.Number, tail.Data); err != nil {
			return err
		}
	}
	if err := w.Finish(); err != nil {
		return err
	}
	return f.Truncate(SizeFor(diskBytes))
}

// Chunk is one chunk of a disk.
type Chunk struct {
	Number int64
	Data   []byte
}

// Tail is the last chunk of a base image that a block device would cut off, since devices
// have whole sectors: the first file over such a base holds it, as if the guest had written it.
// It is nil for any other base.
func Tail(base *os.File, baseBytes int64) (*Chunk, error) {
	if baseBytes%512 == 0 {
		return nil, nil //nolint:nilnil // no tail is a fact, not a failure
	}
	c := &Chunk{Number: baseBytes / ChunkSize, Data: make([]byte, ChunkSize)}
	err := layerfile.ReadPadded(base, c.Data[:baseBytes%ChunkSize], c.Number*ChunkSize)
	return c, layerfile.Failed(err, "read base image", base.Name())
}
