package export

import (
	"archive/tar"
	"bufio"
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/reply"
)

// Path is the route.
const Path = "/roost/export"

// Trailers of the answer.
const (
	wholeTrailer = "Roost-Export"
	errorTrailer = "Roost-Export-Error"
	whole        = "whole"
)

// Handler serves the file system at Root: "/" in a sandbox.
type Handler struct {
	Root string
}

// Get answers with the stream.
func (h Handler) Get(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", wholeTrailer+", "+errorTrailer)
	out := &counter{to: w}
	err := Write(r.Context(), out, h.Root)
	switch {
	case err == nil:
		w.Header().Set(wholeTrailer, whole)
	case out.n == 0:
		w.Header().Del("Trailer")
		reply.Error(w, err)
	default:
		w.Header().Set(errorTrailer, strconv.QuoteToASCII(fault.Message(err)))
	}
}

// Write writes the whole stream.
func Write(ctx context.Context, w io.Writer, root string) error {
	mounts, err := mountPoints(root)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 256<<10)
	e := exporter{
		ctx: ctx, root: root, mounts: mounts, out: tar.NewWriter(out),
		links: map[inode]string{}, buf: make([]byte, 1<<20),
	}
	if err := e.tree(); err != nil {
		return fault.Wrap(err, "export", "file system")
	}
	if err := e.out.Close(); err != nil {
		return fault.Wrap(err, "export", "file system")
	}
	return out.Flush()
}

// counter knows whether anything was sent.
type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}
