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
	"strconv"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

func (j *copyJob) download(ctx context.Context) error {
	from := remoteFiles{j.c, j.src.id, j.user}
	entry, at, err := from.resolve(ctx, j.src.path)
	switch {
	case err != nil:
		return err
	case entry == nil:
		return fault.New(fault.NotFound, "", "", "there is no "+j.src.String())
	case isFolder(entry) && j.dst.stdio():
		return fault.New(fault.Invalid, "", "", "a folder cannot go to stdout").
			WithHint("roost exec ID -- tar c FOLDER writes it as an archive")
	case isFolder(entry):
		return j.downloadDir(ctx, from, at, entry)
	default:
		return j.downloadFile(ctx, from, at, entry)
	}
}

func (j *copyJob) downloadFile(ctx context.Context, from remoteFiles, at string, entry *v1.Entry) error {
	body, size, err := from.read(ctx, at)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	j.meter.begin(max(size, 0))
	j.files++
	data := io.TeeReader(remoteReader{body}, j.meter)
	if j.dst.stdio() {
		_, err = io.Copy(os.Stdout, data)
		return err
	}
	to, err := j.localFile(remoteName(entry, at))
	if err != nil {
		return err
	}
	return writeWhole(to, permissions(entry), data)
}

// localFile is where a single file goes. Symlinks are followed, as a plain write would.
func (j *copyJob) localFile(name string) (string, error) {
	to := j.dst.path
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
		to = filepath.Join(to, name)
	case j.dst.into() && errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(to, 0o777); err != nil {
			return "", localError(err)
		}
		to = filepath.Join(to, name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", localError(err)
	}
	if resolved, err := filepath.EvalSymlinks(to); err == nil {
		return resolved, nil
	}
	return to, nil
}

// remoteName is the last part of a remote path. It comes from what the user wrote, not from
// the sandbox, which could answer with any name.
func remoteName(entry *v1.Entry, at string) string {
	if name := path.Base(at); name != "." && name != ".." && name != "/" {
		return name
	}
	return path.Base(entry.Path)
}

func permissions(entry *v1.Entry) fs.FileMode {
	bits, err := strconv.ParseUint(entry.Mode, 8, 32)
	if err != nil {
		return 0o644
	}
	return fs.FileMode(bits) & fs.ModePerm
}

// writeWhole writes a file so that it appears whole or not at all. What is no regular file (a
// device, a pipe) is written in place.
func writeWhole(to string, mode fs.FileMode, data io.Reader) error {
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
		return fault.New(fault.FailedPrecondition, "", "", "a file cannot replace the folder "+to)
	case err == nil && !info.Mode().IsRegular():
		return writeInPlace(to, data)
	}
	root, err := os.OpenRoot(filepath.Dir(to))
	if err != nil {
		return localError(err)
	}
	defer func() { _ = root.Close() }()
	return writeIn(root, filepath.Base(to), mode, data)
}

func writeInPlace(to string, data io.Reader) error {
	file, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return localError(err)
	}
	_, err = io.Copy(file, data)
	return errors.Join(err, localError(file.Close()))
}

func (j *copyJob) downloadDir(ctx context.Context, from remoteFiles, at string, entry *v1.Entry) error {
	to, fresh, err := j.localDir(remoteName(entry, at))
	if err != nil {
		return err
	}
	archive, err := from.pack(ctx, at)
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	j.meter.begin(0)
	err = j.unpackTo(to, fresh, io.TeeReader(remoteReader{archive}, j.meter))
	switch {
	case err != nil && fresh:
		return errors.Join(err, localError(os.RemoveAll(to)))
	case err == nil && fresh: // An archive need not hold the folder itself.
		return localError(os.Chmod(to, permissions(entry)))
	default:
		return err
	}
}

// localDir is the folder that a remote folder becomes; fresh tells that it is not there yet.
func (j *copyJob) localDir(name string) (to string, fresh bool, err error) {
	to = j.dst.path
	info, err := os.Stat(to)
	if err == nil && info.IsDir() && !j.src.contents() {
		if !filepath.IsLocal(name) {
			return "", false, fault.New(fault.Invalid, "", "", "the folder has no usable name; copy "+j.src.String()+"/. to copy its contents")
		}
		to = filepath.Join(to, name)
		info, err = os.Stat(to)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return to, true, nil
	case err != nil:
		return "", false, localError(err)
	case !info.IsDir():
		return "", false, fault.New(fault.FailedPrecondition, "", "", "a folder cannot replace "+to+", which is no folder")
	default:
		return to, false, nil
	}
}

func (j *copyJob) unpackTo(to string, fresh bool, archive io.Reader) error {
	if err := os.Mkdir(to, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return localError(err)
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return localError(err)
	}
	defer func() { _ = root.Close() }()
	u := unpacker{root: root, fresh: fresh, leftOut: j.leftOut}
	err = u.unpack(archive)
	j.files = u.files
	return err
}

// remoteReader tells a connection that broke off from local errors.
type remoteReader struct{ r io.Reader }

func (r remoteReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		err = fault.New(fault.Unavailable, "", "", fmt.Sprintf("the connection broke off: %v", err)).
			WithHint("try again; no half-written file was kept")
	}
	return n, err
}
