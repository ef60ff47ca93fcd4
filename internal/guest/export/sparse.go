package export

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// leastHole: a shorter one is sent as the zeros that it reads as.
	leastHole = 64 << 10
	// scanFrom: a smaller file is not read twice to find its holes.
	scanFrom = 1 << 20
	// mostExtents keeps the map within a PAX header.
	mostExtents = 8192

	sparseSize = "ROOST.sparse.size"
	sparseMap  = "ROOST.sparse.map"
)

// extent is a part of a file that holds data.
type extent struct{ at, length int64 }

// file writes a regular file: all of it, or a map and the parts that hold data.
func (e *exporter) file(rel string, st *unix.Stat_t, h *tar.Header) error {
	f, err := open(e.path(rel))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	parts, err := e.extents(f, st.Size)
	if err != nil {
		return err
	}
	for _, p := range parts {
		h.Size += p.length
	}
	if h.Size != st.Size {
		h.PAXRecords = map[string]string{sparseSize: strconv.FormatInt(st.Size, 10), sparseMap: mapText(parts)}
	}
	if err := e.header(rel, st, h); err != nil {
		return err
	}
	for _, p := range parts {
		if err := e.send(f, p); err != nil {
			return err
		}
	}
	return nil
}

// open leaves the time of the last access alone, and waits for nobody.
func open(path string) (*os.File, error) {
	const flags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(path, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return os.OpenFile(path, flags, 0)
	}
	return f, err
}

func (e *exporter) send(f *os.File, p extent) error {
	n, err := io.CopyBuffer(writerOnly{e.out}, &cancellable{e, io.NewSectionReader(f, p.at, p.length)}, e.buf)
	if err == nil && n < p.length {
		err = errors.New("it became shorter while it was read")
	}
	return err
}

// writerOnly and cancellable make CopyBuffer use its buffer, and look at the context for each.
type writerOnly struct{ io.Writer }

type cancellable struct {
	e *exporter
	r io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if err := c.e.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func mapText(parts []extent) string {
	var out strings.Builder
	for i, p := range parts {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString(strconv.FormatInt(p.at, 10) + "," + strconv.FormatInt(p.length, 10))
	}
	return out.String()
}

// extents are the parts of a file that hold data, in order, with holes worth the name between them.
func (e *exporter) extents(f *os.File, size int64) ([]extent, error) {
	if size < leastHole {
		return join([]extent{{0, size}}, size), nil
	}
	parts, err := seekExtents(f, size)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ESPIPE) {
		// gVisor's file system knows its holes and does not tell.
		if size < scanFrom {
			return join([]extent{{0, size}}, size), nil
		}
		parts, err = e.scanExtents(f, size)
	}
	return join(parts, size), err
}

// seekExtents asks the file system.
func seekExtents(f *os.File, size int64) ([]extent, error) {
	var parts []extent
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= size {
			break
		}
		if err != nil {
			return nil, err
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		at = min(hole, size)
		parts = append(parts, extent{data, at - data})
	}
	return parts, nil
}

// scanExtents reads the file for zeros.
func (e *exporter) scanExtents(f *os.File, size int64) ([]extent, error) {
	var parts []extent
	zeros := make([]byte, leastHole)
	for at := int64(0); at < size; at += int64(len(e.buf)) {
		if err := e.ctx.Err(); err != nil {
			return nil, err
		}
		n, err := f.ReadAt(e.buf[:min(int64(len(e.buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		for off := 0; off < n; off += leastHole {
			piece := e.buf[off:min(off+leastHole, n)]
			if !bytes.Equal(piece, zeros[:len(piece)]) {
				parts = append(parts, extent{at + int64(off), int64(len(piece))})
			}
		}
	}
	return parts, nil
}

// join closes gaps that are not worth it, and larger ones as long as the map is too long.
func join(parts []extent, size int64) []extent {
	for gap := int64(leastHole); ; gap *= 2 {
		var out []extent
		for _, p := range parts {
			last := len(out) - 1
			if last >= 0 && p.at-(out[last].at+out[last].length) < gap {
				out[last].length = p.at + p.length - out[last].at
			} else {
				out = append(out, p)
			}
		}
		parts = closeEnds(out, size, gap)
		if len(parts) <= mostExtents {
			return parts
		}
	}
}

// closeEnds does the same before the first part and behind the last.
func closeEnds(parts []extent, size, gap int64) []extent {
	if len(parts) == 0 {
		if size < gap && size > 0 {
			return []extent{{0, size}}
		}
		return nil
	}
	if first := &parts[0]; first.at < gap {
		first.at, first.length = 0, first.at+first.length
	}
	if last := &parts[len(parts)-1]; size-(last.at+last.length) < gap {
		last.length = size - last.at
	}
	return parts
}
