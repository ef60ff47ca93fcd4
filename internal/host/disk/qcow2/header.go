package qcow2

import (
	"encoding/binary"
	"fmt"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// The dialect's constants; QEMU's docs/interop/qcow2.txt has the format.
const (
	magic        = 0x514649fb
	version      = 3
	clusterBits  = 16
	clusterSize  = 1 << clusterBits
	entriesPerL2 = clusterSize / 8
	bytesPerL2   = entriesPerL2 * clusterSize
	// headerLength is version 3's first form; the longer one only adds the compression type.
	headerLength  = 104
	refcountOrder = 4
	refsPerBlock  = clusterSize / 2
	// maxSize keeps the L1 table within one cluster.
	maxSize = int64(entriesPerL2) * bytesPerL2
	copied  = uint64(1) << 63
)

// A size in clusters and a size in the contract's units must be the same thing.
var _ = [1]struct{}{}[disk.SizeUnit-clusterSize]

// header holds the fields that this driver sets; every other one is zero in the dialect.
type header struct {
	size             int64
	l1Size           int64
	l1Offset         int64
	refTableOffset   int64
	refTableClusters uint32
}

// l1Entries is how many L1 entries a disk of size needs.
func l1Entries(size int64) int64 { return (size + bytesPerL2 - 1) / bytesPerL2 }

// encode returns the header and, by its zeros, an empty list of header extensions.
func (h header) encode() []byte {
	b := make([]byte, headerLength+8)
	be := binary.BigEndian
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], version)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(h.size))
	be.PutUint32(b[36:], uint32(h.l1Size))
	be.PutUint64(b[40:], uint64(h.l1Offset))
	be.PutUint64(b[48:], uint64(h.refTableOffset))
	be.PutUint32(b[56:], h.refTableClusters)
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerLength)
	return b
}

// parseHeader reads a header and refuses what is not of the dialect.
func parseHeader(path string, b []byte) (header, error) {
	be := binary.BigEndian
	if len(b) < headerLength || be.Uint32(b) != magic || be.Uint32(b[4:]) != version {
		return header{}, layerfile.Refused(path, "it is not a qcow2 image of version 3")
	}
	if err := checkFeatures(path, b); err != nil {
		return header{}, err
	}
	h := header{
		size:             int64(be.Uint64(b[24:])),
		l1Size:           int64(be.Uint32(b[36:])),
		l1Offset:         int64(be.Uint64(b[40:])),
		refTableOffset:   int64(be.Uint64(b[48:])),
		refTableClusters: be.Uint32(b[56:]),
	}
	return h, h.check(path)
}

// checkFeatures refuses everything that would lead a reader out of the image or out of the
// dialect: a backing file, a data file (an incompatible feature), encryption, snapshots.
func checkFeatures(path string, b []byte) error {
	be := binary.BigEndian
	switch {
	case be.Uint64(b[8:]) != 0 || be.Uint32(b[16:]) != 0:
		return layerfile.Refused(path, "its header names a backing file")
	case be.Uint64(b[72:])&4 != 0:
		return layerfile.Refused(path, "its header names an external data file")
	case be.Uint64(b[72:])&2 != 0:
		return layerfile.Refused(path, "QEMU found it corrupt")
	case be.Uint64(b[72:]) != 0:
		return layerfile.Refused(path, fmt.Sprintf("it has incompatible features %#x", be.Uint64(b[72:])))
	case be.Uint64(b[88:]) != 0:
		return layerfile.Refused(path, fmt.Sprintf("it has autoclear features %#x", be.Uint64(b[88:])))
	case be.Uint32(b[32:]) != 0:
		return layerfile.Refused(path, "it is encrypted")
	case be.Uint32(b[60:]) != 0:
		return layerfile.Refused(path, "it holds internal snapshots")
	case be.Uint32(b[20:]) != clusterBits || be.Uint32(b[96:]) != refcountOrder:
		return layerfile.Refused(path, "its clusters or refcounts have another size than Roost's")
	}
	return nil
}

// check refuses sizes and table places that Roost and QEMU would not have written.
func (h header) check(path string) error {
	switch {
	case h.size <= 0 || h.size > maxSize || h.size%clusterSize != 0:
		return layerfile.Refused(path, fmt.Sprintf("its header gives a size of %d bytes", h.size))
	case h.l1Size < l1Entries(h.size) || h.l1Size > entriesPerL2:
		return layerfile.Refused(path, fmt.Sprintf("its L1 table has %d entries", h.l1Size))
	case h.l1Offset < clusterSize || h.l1Offset%clusterSize != 0:
		return layerfile.Refused(path, fmt.Sprintf("its L1 table is at %d", h.l1Offset))
	}
	return nil
}
