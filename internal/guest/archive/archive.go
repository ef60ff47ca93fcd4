// Package archive serves GET and PUT /archive: folders as tar streams, Roost's addition.
//
// GET gives what is below a folder, with names relative to it, or one file under its base
// name. PUT unpacks below a folder, which is made. Modes, times and symlinks are kept; the
// owner is the user. Sockets and devices are left out, hard links become files.
//
// Unpacking cannot leave its folder: every name goes through root, so neither "..", nor an
// absolute name, nor a symlink in the archive or already on the disk leads outside; such an
// entry ends the request with an error, and what was unpacked before it stays. A GET that
// fails half way breaks the connection: a tar without its end is not a tar.
package archive

import (
	"archive/tar"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/files"
	"github.com/roosthq/roost/internal/guest/identity"
	"github.com/roosthq/roost/internal/guest/reply"
)

// Handler serves /archive.
type Handler struct {
	Users    account.Database
	Identity *identity.Identity
}

// Get packs.
func (h Handler) Get(w http.ResponseWriter, r *http.Request) {
	_, path, err := h.resolve(r)
	if err != nil {
		reply.Error(w, err)
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		reply.Error(w, account.FromOS(err, "pack", path))
		return
	}
	w.Header().Set("Content-Type", "application/x-tar")
	out := tar.NewWriter(w)
	if info.IsDir() {
		err = packTree(out, path)
	} else {
		err = packOne(out, path, filepath.Base(path), info)
	}
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the status has been sent: only a broken stream can tell
	}
}

func (h Handler) resolve(r *http.Request) (account.User, string, error) {
	user, path, err := files.Resolve(r, h.Users, h.Identity)
	if err == nil && path == "" {
		err = fault.New(fault.Invalid, "open", "archive", "the path is missing")
	}
	return user, path, err
}

func packTree(out *tar.Writer, root string) error {
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real // WalkDir does not follow its root
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return packOne(out, path, name, info)
	})
}

func packOne(out *tar.Writer, path, name string, info fs.FileInfo) error {
	switch {
	case info.Mode().IsRegular():
		return packFile(out, path, name)
	case info.IsDir():
		return writeHeader(out, info, name+"/", "")
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return ignoreGone(err)
		}
		return writeHeader(out, info, name, target)
	default:
		return nil
	}
}

func packFile(out *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := writeHeader(out, info, name, ""); err != nil {
		return err
	}
	return copyExactly(out, f, info.Size())
}

// copyExactly sends the size the header promised: a log may grow meanwhile, or be cut.
func copyExactly(w io.Writer, f io.Reader, size int64) error {
	n, err := io.Copy(w, io.LimitReader(f, size))
	if err == nil && n < size {
		_, err = io.CopyN(w, zeros{}, size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func writeHeader(out *tar.Writer, info fs.FileInfo, name, link string) error {
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uname, h.Gname, h.Uid, h.Gid = "", "", 0, 0 // who owns it is for the receiver to say
	return out.WriteHeader(h)
}

func ignoreGone(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
