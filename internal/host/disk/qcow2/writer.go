package qcow2

import (
	"encoding/binary"
	"os"

	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// writer writes a whole image front to back: header, refcount table and L1 table in the first
// three clusters, then L2 tables and data as they come, then the refcount blocks, as many as the
// image turned out to need.
type writer struct {
	file *os.File
	size int64
	next int64 // first cluster that is not used
	l1   []uint64
	l2   []uint64
	buf  []byte
}

const (
	writerRefTable = 1 * clusterSize
	writerL1       = 2 * clusterSize
	writerFirst    = 3
)

func newWriter(f *os.File, size int64) *writer {
	return &writer{file: f, size: size, next: writerFirst, l1: make([]uint64, l1Entries(size)), buf: make([]byte, clusterSize)}
}

// begin starts the next stretch's table.
func (w *writer) begin() { w.l2 = make([]uint64, entriesPerL2) }

// put adds cluster i of the stretch. Data that is all zeros needs no cluster.
func (w *writer) put(i int64, p place) error {
	w.l2[i] = zeroFlag
	if p.offset == 0 {
		return nil
	}
	if err := layerfile.ReadPadded(p.image.file, w.buf, p.offset); err != nil {
		return layerfile.Failed(err, "read", p.image.path)
	}
	if layerfile.IsZero(w.buf) {
		return nil
	}
	offset, err := w.append(w.buf)
	w.l2[i] = copied | uint64(offset)
	return err
}

// end writes the table of stretch n.
func (w *writer) end(n int64) error {
	offset, err := w.append(encodeTable(w.l2))
	w.l1[n] = copied | uint64(offset)
	return err
}

// append writes one cluster at the end.
func (w *writer) append(b []byte) (int64, error) {
	offset := w.next * clusterSize
	_, err := w.file.WriteAt(b, offset)
	w.next++
	return offset, err
}

// finish writes refcounts, the L1 table and the header.
func (w *writer) finish() error {
	if err := w.writeRefcounts(); err != nil {
		return err
	}
	if _, err := w.file.WriteAt(encodeTable(w.l1), writerL1); err != nil {
		return err
	}
	h := header{size: w.size, l1Size: int64(len(w.l1)), l1Offset: writerL1, refTableOffset: writerRefTable, refTableClusters: 1}
	_, err := w.file.WriteAt(h.encode(), 0)
	return err
}

// writeRefcounts appends the blocks that count every cluster, themselves included. One cluster
// of table holds 8192 blocks, enough for 16 TiB of file.
func (w *writer) writeRefcounts() error {
	blocks := int64(1)
	for blocks*refsPerBlock < w.next+blocks {
		blocks++
	}
	table, total := []uint64{}, w.next+blocks
	for n := range blocks {
		block := make([]byte, clusterSize)
		copy(block, refcounts(min(refsPerBlock, total-n*refsPerBlock)))
		offset, err := w.append(block)
		if err != nil {
			return err
		}
		table = append(table, uint64(offset))
	}
	_, err := w.file.WriteAt(encodeTable(table), writerRefTable)
	return err
}

func encodeTable(table []uint64) []byte {
	b := make([]byte, 0, 8*len(table))
	for _, entry := range table {
		b = binary.BigEndian.AppendUint64(b, entry)
	}
	return b
}
