package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/fault"
)

const maxDepth = 32

var octalMode = regexp.MustCompile(`^[0-7]{3,4}$`)

// guest gives the guest of a running sandbox, when path and user could be such.
func (a *API) guest(ctx context.Context, id, path string, user *string, what string) (*guestproxy.Guest, error) {
	if err := guestproxy.CheckPath(path); err != nil {
		return nil, err
	}
	if err := guestproxy.CheckUser(or(user, "")); err != nil {
		return nil, err
	}
	if _, err := a.sandboxes.Ready(ctx, id, what); err != nil {
		return nil, err
	}
	return a.guests.Guest(id, or(user, "")), nil
}

// explain looks whether the sandbox's state is behind a guest's failure.
func (a *API) explain(ctx context.Context, id, what string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return a.sandboxes.Explain(ctx, id, what, err)
}

// ReadFile streams a file out.
func (a *API) ReadFile(ctx context.Context, r v1.ReadFileRequestObject) (v1.ReadFileResponseObject, error) {
	const what = "read file in"
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	body, err := g.Read(ctx, r.Params.Path)
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return download{body, "application/octet-stream"}, nil
}

// ReadArchive streams a tar out.
func (a *API) ReadArchive(ctx context.Context, r v1.ReadArchiveRequestObject) (v1.ReadArchiveResponseObject, error) {
	const what = "read archive in"
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	body, err := g.ReadArchive(ctx, r.Params.Path)
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return download{body, "application/x-tar"}, nil
}

// download is a stream out of a guest; an error in its middle breaks the connection.
type download struct {
	*guestproxy.Body
	contentType string
}

func (d download) VisitReadFileResponse(w http.ResponseWriter) error    { return d.copy(w) }
func (d download) VisitReadArchiveResponse(w http.ResponseWriter) error { return d.copy(w) }

func (d download) copy(w http.ResponseWriter) error {
	defer d.Close()
	h := w.Header()
	h.Set("Content-Type", d.contentType)
	h.Set("X-Content-Type-Options", "nosniff") // a guest wrote this
	if d.Length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(d.Length, 10))
	}
	w.WriteHeader(http.StatusOK)
	_, err := io.Copy(w, d.Body)
	return fault.Wrap(err, "read", "from guest")
}

// WriteFile streams a file in.
func (a *API) WriteFile(ctx context.Context, r v1.WriteFileRequestObject) (v1.WriteFileResponseObject, error) {
	const what = "write file in"
	mode := or(r.Params.Mode, "")
	if mode != "" && !octalMode.MatchString(mode) {
		return nil, fault.New(fault.Invalid, "", "", fmt.Sprintf("mode is %.16q: must be 3 or 4 octal digits", mode))
	}
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	if err := g.Write(ctx, r.Params.Path, mode, r.Body); err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	entry, err := g.Stat(ctx, r.Params.Path)
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return v1.WriteFile200JSONResponse(entryOf(entry)), nil
}

// WriteArchive unpacks a tar stream.
func (a *API) WriteArchive(ctx context.Context, r v1.WriteArchiveRequestObject) (v1.WriteArchiveResponseObject, error) {
	const what = "write archive in"
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	if err := g.WriteArchive(ctx, r.Params.Path, r.Body); err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return v1.WriteArchive204Response{}, nil
}

// RemoveFile removes a file or folder.
func (a *API) RemoveFile(ctx context.Context, r v1.RemoveFileRequestObject) (v1.RemoveFileResponseObject, error) {
	const what = "remove file in"
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	if err := g.Remove(ctx, r.Params.Path); err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return v1.RemoveFile204Response{}, nil
}

// StatFile says what is at a path.
func (a *API) StatFile(ctx context.Context, r v1.StatFileRequestObject) (v1.StatFileResponseObject, error) {
	const what = "stat file in"
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	entry, err := g.Stat(ctx, r.Params.Path)
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return v1.StatFile200JSONResponse(entryOf(entry)), nil
}

// MakeDir makes a folder.
func (a *API) MakeDir(ctx context.Context, r v1.MakeDirRequestObject) (v1.MakeDirResponseObject, error) {
	const what = "make folder in"
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	entry, err := g.MakeDir(ctx, r.Params.Path)
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return v1.MakeDir201JSONResponse(entryOf(entry)), nil
}

// ListFiles lists a folder.
func (a *API) ListFiles(ctx context.Context, r v1.ListFilesRequestObject) (v1.ListFilesResponseObject, error) {
	const what = "list files in"
	depth := or(r.Params.Depth, 1)
	if depth < 1 || depth > maxDepth {
		return nil, fault.New(fault.Invalid, "", "", fmt.Sprintf("depth is %d: must be 1 to %d", depth, maxDepth))
	}
	g, err := a.guest(ctx, r.Id, r.Params.Path, r.Params.User, what)
	if err != nil {
		return nil, err
	}
	entries, err := g.List(ctx, r.Params.Path, depth)
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	out := v1.ListFiles200JSONResponse{Entries: make([]v1.Entry, len(entries))}
	for i, e := range entries {
		out.Entries[i] = entryOf(e)
	}
	return out, nil
}
