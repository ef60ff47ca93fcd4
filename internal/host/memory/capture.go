package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// Stats says what a Capture, an Apply or a Merge did. Counts are pages.
type Stats struct {
	// Private pages that the VM had.
	Private int
	// Zero pages in the map.
	Zero int
	// Same pages: in the parent's map with the same content, so not written again.
	Same int
	// Written pages.
	Written int
	// Returned pages: in the parent's map, but no longer private. It should be 0.
	Returned int
	// Bytes written.
	Bytes int64
	// Scan and Copy are how long finding and moving the pages took.
	Scan, Copy time.Duration
}

var zeroPage [PageSize]byte

// CaptureFile is Capture into a new file in dir, called as the map's newest layer is
// (LayerName), synced when sync is set. Its name is as durable as that of the map, which is
// published in the same folder after it. On failure nothing is left.
func CaptureFile(ctx context.Context, m Mapping, parent *Map, dir string, sync bool) (*Map, Stats, error) {
	return captureIn(dir, sync, func(layer *os.File) (*Map, Stats, error) { return Capture(ctx, m, parent, layer) })
}

// captureIn publishes the layer that capture writes.
func captureIn(dir string, sync bool, capture func(layer *os.File) (*Map, Stats, error)) (mp *Map, stats Stats, err error) {
	f, err := os.CreateTemp(dir, "."+layerPrefix+"*.tmp")
	if err != nil {
		return nil, stats, diskError(err, "create memory layer in", dir)
	}
	defer func() {
		if err != nil {
			mp, err = nil, errors.Join(err, os.Remove(f.Name()))
		}
	}()
	mp, stats, err = capture(f)
	if err == nil && sync {
		err = diskError(f.Sync(), "sync memory layer", f.Name())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, stats, err
	}
	path := filepath.Join(dir, mp.LayerName(mp.Layers()-1))
	return mp, stats, diskError(os.Rename(f.Name(), path), "publish memory layer", path)
}

// Capture saves what a paused VM changed: it writes to layer (empty, for writing) the pages
// that differ from the parent's map and returns the new map, whose last layer is this one, even
// if it stayed empty. Without a parent these are all private pages that are not zero. The VM
// must not run until Capture returns. Nothing is synced. A full disk is
// fault.ResourceExhausted, a parent of MaxLayers layers fault.FailedPrecondition.
//
// Apply made every page of the parent's map private, and a private page stays private unless
// someone discards it (madvise), which VMMs here are told not to do. Should one have been
// discarded all the same, the VM now sees the template's page there. Capture does not argue
// from that: it reads all pages of the parent's map, private or not, and saves what the VM sees.
func Capture(ctx context.Context, m Mapping, parent *Map, layer *os.File) (*Map, Stats, error) {
	c := newCapture(ctx, parent, layer)
	mp, err := c.run(m)
	if err != nil {
		return nil, c.stats, fault.Wrap(err, "capture", m.String())
	}
	return mp, c.stats, nil
}

type capture struct {
	ctx context.Context // of the one call that made it
	// read fills b with the pages from start on.
	read   func(b []byte, start uint32) error
	parent cursor
	layer  *os.File
	id     layerID
	out    builder
	stats  Stats
	// buf holds the pages read, nums their numbers.
	buf  []byte
	nums []uint32
}

func newCapture(ctx context.Context, parent *Map, layer *os.File) *capture {
	return &capture{ctx: ctx, id: newLayerID(), parent: cursor{m: parent}, layer: layer, buf: make([]byte, 0, batchPages*PageSize)}
}

func (c *capture) run(m Mapping) (*Map, error) {
	if err := c.begin(m); err != nil {
		return nil, err
	}
	p, err := openProcess(m, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer p.close()
	c.read = p.read
	start := time.Now()
	list, err := c.pages(p)
	if err != nil {
		return nil, err
	}
	c.stats.Scan = time.Since(start)
	for _, s := range list {
		if err := c.span(s); err != nil {
			return nil, err
		}
	}
	mp, err := c.finish()
	c.stats.Copy = time.Since(start) - c.stats.Scan
	return mp, err
}

// finish writes what is left and names the layer.
func (c *capture) finish() (*Map, error) {
	if err := c.flush(); err != nil {
		return nil, err
	}
	c.out.m.layers[len(c.out.m.layers)-1] = layer{pages: uint32(c.stats.Written), id: c.id.id()}
	return &c.out.m, nil
}

// begin checks what goes in and starts the new map.
func (c *capture) begin(m Mapping) error {
	info, err := c.layer.Stat()
	if err != nil {
		return err
	}
	if info.Size() != 0 {
		return fault.New(fault.Invalid, "write layer", c.layer.Name(), "it is not empty")
	}
	c.out.m = Map{pages: uint32(m.Bytes / PageSize), template: m.Template}
	parent := c.parent.m
	if parent != nil {
		if err := parent.fits(m); err != nil {
			return err
		}
		if len(parent.layers) >= MaxLayers {
			return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("its map has %d layers: merge them first", len(parent.layers)))
		}
		c.out.m.template = parent.template
		c.out.m.layers = append(c.out.m.layers, parent.layers...)
	}
	c.out.m.layers = append(c.out.m.layers, layer{})
	return nil
}

// fits says whether the map may meet the mapping.
func (m *Map) fits(to Mapping) error {
	if m.Bytes() != to.Bytes {
		return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("the map is of %d bytes, the mapping of %d", m.Bytes(), to.Bytes))
	}
	if none := (Hash{}); m.template != none && to.Template != none && m.template != to.Template {
		return fault.New(fault.FailedPrecondition, "", "", "the map belongs to the memory of another template")
	}
	return nil
}

// pages lists what must be looked at.
func (c *capture) pages(p *process) ([]span, error) {
	own, err := private(c.ctx, p.pagemap, p.Mapping, true)
	if err != nil {
		return nil, err
	}
	c.stats.Private = pagesIn(own)
	if c.parent.m == nil {
		return own, nil
	}
	all := union(own, c.parent.m.spans())
	c.stats.Returned = pagesIn(all) - c.stats.Private
	return all, nil
}

// span reads a run of pages in parts that fit the buffer.
func (c *capture) span(s span) error {
	for s.count > 0 {
		used := len(c.buf)
		n := min(s.count, uint32(batchPages-used/PageSize))
		c.buf = c.buf[:used+int(n)*PageSize]
		if err := c.read(c.buf[used:], s.start); err != nil {
			return err
		}
		for i := range n {
			c.nums = append(c.nums, s.start+i)
		}
		s = span{s.start + n, s.count - n}
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sorts the pages read into zero, same and changed, moves the changed ones to the front
// of the buffer and writes them with one call.
func (c *capture) flush() error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	changed := 0
	for i, n := range c.nums {
		page := c.buf[i*PageSize : (i+1)*PageSize]
		entry := c.classify(page, n, int64(c.stats.Written+changed))
		if entry.Kind == Data && entry.Layer == len(c.out.m.layers)-1 {
			c.id.add(entry.Hash)
			copy(c.buf[changed*PageSize:], page)
			changed++
		}
		c.out.add(n, entry)
	}
	if changed > 0 {
		if _, err := c.layer.Write(c.buf[:changed*PageSize]); err != nil {
			return diskError(err, "write memory layer", c.layer.Name())
		}
	}
	c.stats.Written += changed
	c.stats.Bytes += int64(changed) * PageSize
	c.buf, c.nums = c.buf[:0], c.nums[:0]
	return nil
}

// classify says what the map has to say of a page; index is where it goes if it is new.
func (c *capture) classify(page []byte, n uint32, index int64) Page {
	if bytes.Equal(page, zeroPage[:]) {
		c.stats.Zero++
		return Page{Kind: Zero}
	}
	h := xxh3.Hash128(page)
	if old := c.parent.at(n); old.Kind == Data && old.Hash == h {
		c.stats.Same++
		return old
	}
	return Page{Data, len(c.out.m.layers) - 1, index, h}
}
