package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// CaptureDirty saves the memory of a VM whose VMM keeps count of what the guest writes. dirty is a
// sparse file of exactly the RAM's size: data are the pages written since the VM was started,
// holes those that were not. base is the template's memory under it (Info.ID), zero for a VM that
// booted; parent is what the VM was restored from, nil if from the base alone. As with CaptureFile,
// a new layer in dir gets what differs from the parent, and the map is the caller's to write.
//
// A page that is not dirty is what the parent says of it. Without a base there is nothing that
// could be unchanged, so each page of such a map is zero or data, and it means the same over any
// memory. Errors are Capture's; a file system whose holes are coarser than pages is
// fault.FailedPrecondition, because it would turn unchanged pages into zeros.
func CaptureDirty(ctx context.Context, dirty *os.File, base Hash, parent *Map, dir string, sync bool) (*Map, Stats, error) {
	return captureIn(dir, sync, func(layer *os.File) (*Map, Stats, error) {
		d := dirtyCapture{capture: newCapture(ctx, parent, layer), dirty: dirty}
		mp, err := d.run(base)
		return mp, d.stats, fault.Wrap(err, "capture written pages", dirty.Name())
	})
}

type dirtyCapture struct {
	*capture
	dirty *os.File
}

func (d *dirtyCapture) run(base Hash) (*Map, error) {
	start := time.Now()
	m, list, err := d.scan(base)
	if err != nil {
		return nil, err
	}
	if err := d.begin(m); err != nil {
		return nil, err
	}
	d.read = d.readDirty
	d.stats.Private, d.stats.Scan = pagesIn(list), time.Since(start)
	next, complete := uint32(0), d.out.m.template == Hash{}
	for _, s := range append(list, span{uint32(m.Bytes / PageSize), 0}) {
		if err := d.keep(span{next, s.start - next}, complete); err != nil {
			return nil, err
		}
		if err := d.span(s); err != nil {
			return nil, err
		}
		next = s.end()
	}
	mp, err := d.finish()
	d.stats.Copy = time.Since(start) - d.stats.Scan
	return mp, err
}

// scan lists the pages that were written. A mapping without an address is what begin compares with.
func (d *dirtyCapture) scan(base Hash) (Mapping, []span, error) {
	if err := checkRegular(d.dirty); err != nil {
		return Mapping{}, nil, err
	}
	st, err := d.dirty.Stat()
	if err == nil {
		err = checkSize(st.Size())
	}
	if err != nil {
		return Mapping{}, nil, err
	}
	list, err := dataPages(d.dirty, st.Size())
	return Mapping{Bytes: st.Size(), Template: base}, list, err
}

// keep takes over what the parent says of pages that were not written. complete: what it has
// nothing to say of is zero.
func (d *dirtyCapture) keep(s span, complete bool) error {
	if d.parent.m == nil && !complete {
		return nil
	}
	if err := d.flush(); err != nil { // those before it come first
		return err
	}
	for n := s.start; n < s.end(); n++ {
		p := d.parent.at(n)
		if p.Kind == 0 && complete {
			p.Kind = Zero
		}
		switch p.Kind {
		case 0:
			continue
		case Zero:
			d.stats.Zero++
		case Data:
			d.stats.Same++
		}
		d.out.add(n, p)
	}
	return nil
}

func (d *dirtyCapture) readDirty(b []byte, start uint32) error {
	_, err := d.dirty.ReadAt(b, int64(start)*PageSize)
	return err
}

// dataPages lists the pages of a sparse file that are not holes.
func dataPages(f *os.File, size int64) ([]span, error) {
	var out []span
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data: %w", err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find hole: %w", err)
		}
		if data < at || hole <= data || data >= size {
			return nil, errors.New("the file changes while it is read")
		}
		first, end := data/PageSize, (min(hole, size)+PageSize-1)/PageSize
		out = appendSpan(out, span{uint32(first), uint32(end - first)})
		at = hole
	}
	return out, nil
}

// checkRegular refuses what is no file, and files on a file system that keeps holes in larger
// units than pages: what was never written would read as written zeros.
func checkRegular(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fault.New(fault.Invalid, "", "", "it is not a regular file")
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Bsize > PageSize {
		return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("its file system has blocks of %d bytes, holes must be exact to %d", fs.Bsize, PageSize)).
			WithHint("keep the data directory on ext4, XFS or Btrfs with blocks of 4096 bytes")
	}
	return nil
}
