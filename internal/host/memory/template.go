package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// workers read, check and copy at once; more than this gains nothing on memory bandwidth.
const workers = 4

// Info describes a template's memory.
type Info struct {
	// ID identifies the content: equal memories have equal IDs.
	ID Hash
	// Bytes is the size of the memory; Used counts pages that are not zero, in bytes.
	Bytes, Used int64
}

// Save publishes a sealed template's memory as a sparse file at dst.
func Save(ctx context.Context, f *os.File, dst string) (Info, error) {
	if err := CheckSealed(f); err != nil {
		return Info{}, fault.Wrap(err, "save template memory", dst)
	}
	return save(ctx, f, dst)
}

// SaveFrom is Save of a memory that a VMM wrote into a sparse file by itself, whose holes are
// zeros (see CaptureDirty). Nobody may write the file meanwhile; should someone do so all the same, what
// is published is whole, but nobody's memory.
func SaveFrom(ctx context.Context, f *os.File, dst string) (Info, error) {
	if err := checkRegular(f); err != nil {
		return Info{}, fault.Wrap(err, "save template memory", dst)
	}
	return save(ctx, f, dst)
}

func save(ctx context.Context, f *os.File, dst string) (Info, error) {
	st, err := f.Stat()
	if err == nil {
		err = checkSize(st.Size())
	}
	if err != nil {
		return Info{}, fault.Wrap(err, "save template memory", dst)
	}
	t := newTable(st.Size())
	var info Info
	err = publish(dst, func(out *os.File) error {
		if err := out.Truncate(t.bytes); err != nil {
			return err
		}
		if err := t.save(ctx, f, out); err != nil {
			return err
		}
		tail, id := t.marshal()
		info = Info{id, t.bytes, t.usedPages() * PageSize}
		_, err := out.WriteAt(tail, t.bytes)
		return err
	})
	return info, fault.Wrap(err, "save template memory", dst)
}

// save fills the table from a memfd or sparse file and writes the pages that are not zero.
func (t *table) save(ctx context.Context, f, out *os.File) error {
	chunks, err := dataChunks(f, t.bytes)
	if err != nil {
		return err
	}
	return parallel(ctx, chunks, func(i int, buf []byte) error {
		buf = buf[:t.length(i)]
		at := int64(i) * chunkBytes
		if _, err := f.ReadAt(buf, at); err != nil {
			return err
		}
		c := &t.chunks[i]
		h := xxh3.New128()
		for p := range len(buf) / PageSize {
			if page := buf[p*PageSize : (p+1)*PageSize]; !bytes.Equal(page, zeroPage[:]) {
				c.set(p)
				_, _ = h.Write(page) // a hash takes everything
			}
		}
		if c.count() == 0 {
			return nil
		}
		c.hash = h.Sum128()
		for _, s := range c.runs() {
			if _, err := out.WriteAt(buf[s.start*PageSize:s.end()*PageSize], at+int64(s.start)*PageSize); err != nil {
				return err
			}
		}
		return nil
	})
}

// dataChunks lists the chunks of a sparse file that are not one hole.
func dataChunks(f *os.File, size int64) ([]int, error) {
	var out []int
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data: %w", err)
		}
		if data >= size { // a table follows the memory
			break
		}
		i := data / chunkBytes
		out = append(out, int(i))
		at = (i + 1) * chunkBytes
	}
	return out, nil
}

// parallel runs do for each chunk, each worker with a buffer of its own.
func parallel(ctx context.Context, chunks []int, do func(i int, buf []byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for _, i := range chunks {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, chunkBytes)
			for i := range next {
				if err := do(i, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// ReadInfo reads what a template's file says of itself; only the table is checked.
func ReadInfo(src string, bytes int64) (Info, error) {
	f, t, id, err := openTemplate(src, bytes)
	if err != nil {
		return Info{}, fault.Wrap(err, "read template memory", src)
	}
	return Info{id, bytes, t.usedPages() * PageSize}, fault.Wrap(f.Close(), "read template memory", src)
}

func openTemplate(src string, bytes int64) (*os.File, *table, Hash, error) {
	if err := checkSize(bytes); err != nil {
		return nil, nil, Hash{}, err
	}
	f, err := os.Open(src)
	if err != nil {
		return nil, nil, Hash{}, diskError(err, "open", src)
	}
	t, id, err := readTable(f, bytes)
	if err != nil {
		return nil, nil, Hash{}, errors.Join(err, f.Close())
	}
	return f, t, id, nil
}

func readTable(f *os.File, bytes int64) (*table, Hash, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, Hash{}, err
	}
	size := tableSize(bytes)
	if st.Size() != bytes+size {
		return nil, Hash{}, badTemplate("%d bytes long, a memory of %d bytes needs %d", st.Size(), bytes, bytes+size)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, bytes); err != nil {
		return nil, Hash{}, err
	}
	return parseTable(b, bytes)
}

// Load reads a template's memory into a new sealed memfd, checking all of it.
func Load(ctx context.Context, src string, bytes int64) (*os.File, Info, error) {
	f, t, id, err := openTemplate(src, bytes)
	if err != nil {
		return nil, Info{}, fault.Wrap(err, "load template memory", src)
	}
	defer func() { _ = f.Close() }() // only read
	mem, err := NewTemplate(filepath.Base(src), bytes)
	if err != nil {
		return nil, Info{}, fault.Wrap(err, "load template memory", src)
	}
	if err := errors.Join(t.load(ctx, f, mem), Seal(mem)); err != nil {
		return nil, Info{}, fault.Wrap(errors.Join(err, mem.Close()), "load template memory", src)
	}
	return mem, Info{id, bytes, t.usedPages() * PageSize}, nil
}

func (t *table) load(ctx context.Context, from io.ReaderAt, mem *os.File) error {
	return parallel(ctx, t.usedChunks(), func(i int, buf []byte) error {
		at := int64(i) * chunkBytes
		runs := t.chunks[i].runs()
		h := xxh3.New128()
		for _, s := range runs {
			b := buf[s.start*PageSize : s.end()*PageSize]
			if _, err := from.ReadAt(b, at+int64(s.start)*PageSize); err != nil {
				return err
			}
			_, _ = h.Write(b) // a hash takes everything
		}
		if h.Sum128() != t.chunks[i].hash {
			return badTemplate("the 2 MiB at %d do not match their checksum", at)
		}
		for _, s := range runs {
			if _, err := mem.WriteAt(buf[s.start*PageSize:s.end()*PageSize], at+int64(s.start)*PageSize); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *table) usedChunks() []int {
	var out []int
	for i := range t.chunks {
		if t.chunks[i].count() > 0 {
			out = append(out, i)
		}
	}
	return out
}

// verify checks that a sealed memfd holds exactly what the table says. It comes from a VMM
// that may have been taken over: neither its name nor its inode proves what is in it.
func (t *table) verify(ctx context.Context, mem *os.File) error {
	if err := CheckSealed(mem); err != nil {
		return err
	}
	if st, err := mem.Stat(); err != nil || st.Size() != t.bytes {
		return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("the memfd is not of %d bytes", t.bytes))
	}
	all := make([]int, len(t.chunks))
	for i := range all {
		all[i] = i
	}
	return parallel(ctx, all, func(i int, buf []byte) error { return t.verifyChunk(mem, i, buf[:t.length(i)]) })
}

func (t *table) verifyChunk(mem *os.File, i int, buf []byte) error {
	if _, err := mem.ReadAt(buf, int64(i)*chunkBytes); err != nil {
		return err
	}
	c := &t.chunks[i]
	h := xxh3.New128()
	for p := range len(buf) / PageSize {
		page := buf[p*PageSize : (p+1)*PageSize]
		if c.has(p) {
			_, _ = h.Write(page) // a hash takes everything
		} else if !bytes.Equal(page, zeroPage[:]) {
			return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("the memfd has data at %d where the template has none", int64(i)*chunkBytes+int64(p)*PageSize))
		}
	}
	if c.count() > 0 && h.Sum128() != c.hash {
		return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("the memfd is not the template: the 2 MiB at %d differ", int64(i)*chunkBytes))
	}
	return nil
}
