package qcow2

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

const (
	offsetMask = uint64(0x00fffffffffffe00)
	compressed = uint64(1) << 62
	zeroFlag   = uint64(1)
)

// image is an open qcow2 file whose header was checked.
type image struct {
	path string
	file *os.File
	header
}

// openImage opens the file for reading, or for reading and writing, and checks that it is of
// the dialect and has the size that the caller knows.
func openImage(path string, sizeBytes int64, flag int) (*image, error) {
	img, err := openAnySize(path, flag)
	if err != nil {
		return nil, err
	}
	if img.size != sizeBytes {
		img.close()
		return nil, layerfile.Refused(path, fmt.Sprintf("its header gives %d bytes, its record %d", img.size, sizeBytes))
	}
	return img, nil
}

func openAnySize(path string, flag int) (*image, error) {
	f, err := layerfile.Open(path, flag)
	if err != nil {
		return nil, err
	}
	b := make([]byte, headerLength)
	if err := layerfile.ReadPadded(f, b, 0); err != nil {
		_ = f.Close()
		return nil, layerfile.Failed(err, "read header of", path)
	}
	h, err := parseHeader(path, b)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &image{path: path, file: f, header: h}, nil
}

// close cannot fail in a way that matters: what was written was synced before.
func (img *image) close() { _ = img.file.Close() }

// l1 reads the L1 table.
func (img *image) l1() ([]uint64, error) {
	return img.table(img.l1Offset, int(img.l1Size))
}

// l2 reads the L2 table that an L1 entry leads to; nil for none.
func (img *image) l2(entry uint64) ([]uint64, error) {
	offset := entry & offsetMask
	if offset == 0 {
		return nil, nil
	}
	if offset%clusterSize != 0 {
		return nil, layerfile.Refused(img.path, fmt.Sprintf("an L2 table is at %d", offset))
	}
	return img.table(int64(offset), entriesPerL2)
}

func (img *image) table(offset int64, entries int) ([]uint64, error) {
	b := make([]byte, 8*entries)
	if err := layerfile.ReadPadded(img.file, b, offset); err != nil {
		return nil, layerfile.Failed(err, "read tables of", img.path)
	}
	table := make([]uint64, entries)
	for i := range table {
		table[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return table, nil
}

// place says what an L2 entry means: not set here, zeros, or data at an offset.
func (img *image) place(entry uint64) (place, error) {
	offset := int64(entry & offsetMask)
	switch {
	case entry&compressed != 0 || offset%clusterSize != 0:
		return place{}, layerfile.Refused(img.path, fmt.Sprintf("it has the L2 entry %#x", entry))
	case entry&zeroFlag != 0:
		return place{set: true}, nil
	default:
		return place{set: offset != 0, image: img, offset: offset}, nil
	}
}

// place is where one cluster's content is.
type place struct {
	// set: a layer decides this cluster; else it is what lies below.
	set    bool
	image  *image
	offset int64 // 0: zeros
}
