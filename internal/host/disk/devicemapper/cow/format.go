package cow

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

const (
	// ChunkSize is the grain of all copy-on-write: a page, so that a guest's 4 KiB write copies nothing.
	ChunkSize = 4096
	// ChunkSectors is the same in the unit that device tables have.
	ChunkSectors = ChunkSize / 512

	magic     = 0x70416e53 // "SnAp"
	version   = 1
	entrySize = 16
	// perArea is how many exceptions one metadata area lists, and so how many data chunks follow it.
	perArea = ChunkSize / entrySize
	stride  = perArea + 1
	// slack is for chunks that the kernel allots and, after an error of its own, never uses.
	slack = stride
)

// A disk's size in the contract's units is a whole number of chunks.
var _ = [1]struct{}{}[disk.SizeUnit%ChunkSize]

// areaAt is the chunk of a metadata area.
func areaAt(n int64) int64 { return 1 + n*stride }

// isMetadata tells a chunk of metadata from one of data.
func isMetadata(chunk int64) bool { return chunk == 0 || chunk%stride == 1 }

// chunks is how many chunks n bytes take.
func chunks(n int64) int64 { return (n + ChunkSize - 1) / ChunkSize }

// SizeFor is the size of a copy-on-write file that a disk of diskBytes can never overflow: a
// chunk for each of the disk's, and metadata for all of them. The kernel starts the next area
// as soon as one is full, so there is always one that is not.
func SizeFor(diskBytes int64) int64 {
	n := chunks(diskBytes)
	areas := n/perArea + 1
	return (1 + areas + n + slack) * ChunkSize
}

func encodeHeader() []byte {
	b := make([]byte, ChunkSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[4:], 1) // valid
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], ChunkSectors)
	return b
}

// Check reads a file's header: DataLoss when it is not a copy-on-write file of Roost's, or one
// that the kernel has given up.
func Check(f *os.File) error {
	b := make([]byte, entrySize)
	if err := layerfile.ReadPadded(f, b, 0); err != nil {
		return layerfile.Failed(err, "read header of", f.Name())
	}
	le := binary.LittleEndian
	switch chunkSize := le.Uint32(b[12:]); {
	case le.Uint32(b) != magic:
		return damaged(f, "it is not a copy-on-write file")
	case le.Uint32(b[8:]) != version || chunkSize != ChunkSectors:
		return damaged(f, fmt.Sprintf("it has version %d and chunks of %d sectors", le.Uint32(b[8:]), chunkSize))
	case le.Uint32(b[4:]) != 1:
		return damaged(f, Invalid)
	}
	return nil
}

// Invalid is why a snapshot that the kernel marked invalid is of no use.
const Invalid = "the kernel could not write to it and gave it up, as when the file system beneath is full"

func damaged(f *os.File, cause string) error { return layerfile.Lost("use", f.Name(), cause) }
