package uffd

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

// A working set's file: magic, pages of the memory (4), runs (4), 8 bytes a run (first page, pages), in
// the order in which they were needed, and the XXH3-64 of all before it; little-endian.
const (
	setMagic  = "ROOSTWS1"
	setHeader = 16
	setSum    = 8
)

var le = binary.LittleEndian

func marshalSet(pages uint32, set []run) []byte {
	b := append(make([]byte, 0, setHeader+len(set)*8+setSum), setMagic...)
	b = le.AppendUint32(b, pages)
	b = le.AppendUint32(b, uint32(len(set)))
	for _, r := range set {
		b = le.AppendUint32(b, r.start)
		b = le.AppendUint32(b, r.count)
	}
	return le.AppendUint64(b, xxh3.Hash(b))
}

// readSet reads a working set. It is advice: what is wrong with it is told, and no more lost.
func readSet(r io.Reader, pages uint32) ([]run, error) {
	const most = setHeader + maxRuns*8 + setSum
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if len(b) < setHeader+setSum || len(b) > most || string(b[:len(setMagic)]) != setMagic ||
		xxh3.Hash(b[:len(b)-setSum]) != le.Uint64(b[len(b)-setSum:]) {
		return nil, badSet("it is damaged")
	}
	if le.Uint32(b[8:]) != pages || int(le.Uint32(b[12:]))*8 != len(b)-setHeader-setSum {
		return nil, badSet("it is of another memory")
	}
	set := make([]run, 0, le.Uint32(b[12:]))
	for rest := b[setHeader : len(b)-setSum]; len(rest) > 0; rest = rest[8:] {
		set = append(set, run{le.Uint32(rest), le.Uint32(rest[4:])})
	}
	return set, checkSet(set, pages)
}

func checkSet(set []run, pages uint32) error {
	total := uint64(0)
	for _, r := range set {
		total += uint64(r.count)
		if r.count == 0 || uint64(r.start)+uint64(r.count) > uint64(pages) {
			return badSet("it names pages that there are not")
		}
	}
	if total > 2*uint64(pages) {
		return badSet("it names pages again and again")
	}
	return nil
}

func badSet(cause string) error { return fault.New(fault.DataLoss, "read working set", "", cause) }

// SaveWorkingSet ends the recording of the pager whose VM has the directory and publishes what it
// noted at dst: the pages that the VM needed first, in order, for StartOptions.WorkingSet. The pager may be
// alive or not. Nothing recorded is fault.NotFound: it was started with a working set, or nobody
// needed anything.
func SaveWorkingSet(dir, dst string) error {
	pages, set, err := recorded(dir)
	if err == nil && len(set) == 0 {
		err = fault.New(fault.NotFound, "", "", "nothing was recorded")
	}
	if err != nil {
		return fault.Wrap(err, "save working set of", dir)
	}
	f, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+".*.tmp")
	if err != nil {
		return fault.Wrap(err, "save working set", dst)
	}
	_, err = f.Write(marshalSet(pages, set))
	// Not synced: a power cut leaves one that is damaged, which is ignored.
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), dst)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return fault.Wrap(err, "save working set", dst)
}

// recorded reads what a pager noted. It is under the VM's uid, and so not trusted.
func recorded(dir string) (uint32, []run, error) {
	f, err := os.OpenFile(filepath.Join(dir, stateName), os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = f.Close() }() // its writes are done when they return
	h, err := readHeader(f)
	if err != nil {
		return 0, nil, err
	}
	var over [8]byte
	if _, err := f.WriteAt(over[:], int64(unsafe.Offsetof(h.recordUntil))); err != nil {
		return 0, nil, err
	}
	if h.pages == 0 || h.pages > 1<<28 || h.runs > maxRuns {
		return 0, nil, badSet("the pager's state is damaged")
	}
	_, at, _ := stateLayout(uint32(h.pages))
	set := make([]run, h.runs)
	if len(set) == 0 {
		return uint32(h.pages), nil, nil
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&set[0])), len(set)*int(unsafe.Sizeof(run{})))
	if _, err := f.ReadAt(raw, at); err != nil {
		return 0, nil, err
	}
	return uint32(h.pages), set, checkSet(set, uint32(h.pages))
}

func pagesOf(bytes int64) uint32 { return uint32(bytes / memory.PageSize) }
