package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

func (j *copyJob) upload(ctx context.Context) error {
	to := remoteFiles{j.c, j.dst.id, j.user}
	if j.src.stdio() {
		return j.uploadStdin(ctx, to)
	}
	info, err := os.Stat(j.src.path)
	if err != nil {
		return localError(err)
	}
	there, at, err := to.resolve(ctx, j.dst.path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return j.uploadDir(ctx, to, there, at)
	}
	return j.uploadFile(ctx, to, info, there, at)
}

func (j *copyJob) uploadStdin(ctx context.Context, to remoteFiles) error {
	there, at, err := to.resolve(ctx, j.dst.path)
	if err != nil {
		return err
	}
	if isFolder(there) || j.dst.into() {
		return fault.New(fault.Invalid, "", "", "the destination is a folder; stdin has no name, so give one")
	}
	j.meter.begin(0)
	j.files++
	return to.write(ctx, at, "", io.TeeReader(os.Stdin, j.meter))
}

func (j *copyJob) uploadFile(ctx context.Context, to remoteFiles, info fs.FileInfo, there *v1.Entry, at string) error {
	switch {
	case isFolder(there) || (there == nil && j.dst.into()):
		at = path.Join(at, filepath.Base(j.src.path))
	case there != nil && j.dst.into():
		return fault.New(fault.FailedPrecondition, "", "", j.dst.String()+" is no folder")
	}
	file, err := os.Open(j.src.path)
	if err != nil {
		return localError(err)
	}
	defer func() { _ = file.Close() }()
	j.meter.begin(info.Size())
	j.files++
	mode := fmt.Sprintf("%04o", info.Mode().Perm())
	return to.write(ctx, at, mode, io.TeeReader(localReader{file}, j.meter))
}

func (j *copyJob) uploadDir(ctx context.Context, to remoteFiles, there *v1.Entry, at string) error {
	if isFolder(there) && !j.src.contents() {
		name, err := localName(j.src.path)
		if err != nil {
			return err
		}
		if there, at, err = to.resolve(ctx, path.Join(at, name)); err != nil {
			return err
		}
	}
	if there != nil && !isFolder(there) {
		return fault.New(fault.FailedPrecondition, "", "", "a folder cannot replace "+j.dst.id+":"+at+", which is no folder")
	}
	if err := to.mkdir(ctx, at); err != nil {
		return err
	}
	j.meter.begin(0)
	return j.sendTree(ctx, to, at, there == nil)
}

// sendTree streams the local folder as a tar archive. A failure to read it ends the request,
// so that the server does not take half an archive for a whole one. Only a fresh remote
// folder gets the local one's mode.
func (j *copyJob) sendTree(ctx context.Context, to remoteFiles, at string, fresh bool) error {
	root, err := os.OpenRoot(j.src.path)
	if err != nil {
		return localError(err)
	}
	defer func() { _ = root.Close() }()
	reader, writer := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		p := packer{root: root, top: fresh, leftOut: j.leftOut}
		err := p.pack(writer)
		j.files = p.files
		_ = writer.CloseWithError(err)
		packed <- err
	}()
	sent := to.unpack(ctx, at, io.TeeReader(reader, j.meter))
	_ = reader.CloseWithError(errUploadEnded)
	return packResult(sent, <-packed)
}

var errUploadEnded = errors.New("the upload ended")

// packResult prefers the reason that came first: a local read error ends the request, and a
// refused request ends the reading.
func packResult(sent, packed error) error {
	if packed != nil && !errors.Is(packed, errUploadEnded) {
		return localError(packed)
	}
	return sent
}

func isFolder(e *v1.Entry) bool { return e != nil && e.Type == v1.Directory }

// localName is the last part of a local path, also for "." and "..".
func localName(at string) (string, error) {
	whole, err := filepath.Abs(at)
	if err != nil {
		return "", localError(err)
	}
	if filepath.Dir(whole) == whole {
		return "", fault.New(fault.Invalid, "", "", "/ has no name; copy /. to copy its contents")
	}
	return filepath.Base(whole), nil
}

// localError gives an error of a local file a kind.
func localError(err error) error {
	kind := fault.KindOf(err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		kind = fault.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = fault.PermissionDenied
	}
	return &fault.Error{Kind: kind, Err: err, Hint: fault.HintOf(err)}
}

// localReader gives the read errors of a local file a kind, so that they are told from the
// connection's when they come back out of an HTTP request.
type localReader struct{ r io.Reader }

func (l localReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = localError(err)
	}
	return n, err
}
