package cli

import (
	"context"
	"io"
	"net/http"
	"path"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// maxLinks bounds a chain of symlinks, as Linux does.
const maxLinks = 40

// remoteFiles is the file side of one sandbox, for one user.
type remoteFiles struct {
	c    *client
	id   string
	user *string
}

func (r remoteFiles) stat(ctx context.Context, at string) (v1.Entry, error) {
	return answer[v1.Entry](r.c.api.StatFileWithResponse(ctx, r.id, &v1.StatFileParams{Path: at, User: r.user}))
}

// resolve follows symlinks and returns what is at the end and the path that leads there. A
// missing path is a nil entry without error.
func (r remoteFiles) resolve(ctx context.Context, at string) (*v1.Entry, string, error) {
	at = statPath(at)
	for range maxLinks {
		entry, err := r.stat(ctx, at)
		switch {
		case fault.Is(err, fault.NotFound):
			return nil, at, r.exists(ctx)
		case err != nil:
			return nil, at, err
		case entry.Type != v1.Symlink || entry.SymlinkTarget == nil:
			return &entry, at, nil
		}
		at = target(entry.Path, *entry.SymlinkTarget)
	}
	return nil, at, fault.New(fault.Invalid, "follow", at, "too many symlinks")
}

// exists tells "no such sandbox" from "no such file", which have the same kind.
func (r remoteFiles) exists(ctx context.Context) error {
	_, err := answer[v1.Sandbox](r.c.api.GetSandboxWithResponse(ctx, r.id))
	return err
}

// statPath is the path to ask about: "" is the user's home, and a trailing slash or "/." is
// no part of a name.
func statPath(at string) string {
	if at == "" {
		return "."
	}
	return path.Clean(at)
}

func target(link, to string) string {
	if path.IsAbs(to) {
		return to
	}
	return path.Join(path.Dir(link), to)
}

// write streams a file in. "Expect: 100-continue" lets the server refuse before the data.
func (r remoteFiles) write(ctx context.Context, at, mode string, body io.Reader) error {
	params := &v1.WriteFileParams{Path: at, User: r.user, Mode: nonEmpty(mode)}
	return settled(r.c.api.WriteFileWithBodyWithResponse(ctx, r.id, params, "application/octet-stream", body, expectContinue))
}

// unpack streams a tar archive in.
func (r remoteFiles) unpack(ctx context.Context, at string, body io.Reader) error {
	params := &v1.WriteArchiveParams{Path: at, User: r.user}
	return settled(r.c.api.WriteArchiveWithBodyWithResponse(ctx, r.id, params, "application/x-tar", body, expectContinue))
}

func expectContinue(_ context.Context, req *http.Request) error {
	req.Header.Set("Expect", "100-continue")
	return nil
}

// read streams a file out; size is -1 when the server does not say.
func (r remoteFiles) read(ctx context.Context, at string) (body io.ReadCloser, size int64, err error) {
	return sized(r.c.api.ReadFile(ctx, r.id, &v1.ReadFileParams{Path: at, User: r.user}))
}

// pack streams a folder out as a tar archive.
func (r remoteFiles) pack(ctx context.Context, at string) (io.ReadCloser, error) {
	body, _, err := sized(r.c.api.ReadArchive(ctx, r.id, &v1.ReadArchiveParams{Path: at, User: r.user}))
	return body, err
}

func sized(resp *http.Response, err error) (io.ReadCloser, int64, error) {
	body, err := content(resp, err)
	if err != nil {
		return nil, 0, err
	}
	return body, resp.ContentLength, nil
}

func (r remoteFiles) mkdir(ctx context.Context, at string) error {
	_, err := answer[v1.Entry](r.c.api.MakeDirWithResponse(ctx, r.id, &v1.MakeDirParams{Path: at, User: r.user}))
	if fault.Is(err, fault.AlreadyExists) {
		return nil
	}
	return err
}
