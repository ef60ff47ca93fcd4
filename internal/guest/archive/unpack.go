package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/reply"
)

// Put unpacks.
func (h Handler) Put(w http.ResponseWriter, r *http.Request) {
	if err := h.unpack(r); err != nil {
		reply.Error(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h Handler) unpack(r *http.Request) error {
	user, dir, err := h.resolve(r)
	if err != nil {
		return err
	}
	if err := user.MkdirAll(dir); err != nil {
		return err
	}
	root, err := openRoot(dir)
	if err != nil {
		return account.FromOS(err, "unpack into", dir)
	}
	defer root.close()
	u := unpacker{root: root, user: user}
	in := tar.NewReader(r.Body)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.New(fault.Invalid, "read", "tar stream", err.Error())
		}
		if err := u.entry(header, in); err != nil {
			return account.FromOS(err, "unpack", "'"+header.Name+"'")
		}
	}
}

type unpacker struct {
	root *root
	user account.User
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	name, err := safeName(h.Name)
	if err != nil || name == "." {
		return err
	}
	if err := u.parents(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(name, h)
	case tar.TypeReg:
		return u.file(name, h, body)
	case tar.TypeSymlink:
		return u.symlink(name, h)
	case tar.TypeLink:
		return u.link(name, h)
	default:
		return fault.New(fault.Invalid, "", "", "only files, folders and links can be unpacked")
	}
}

// safeName refuses what would leave the folder even before root would.
func safeName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 || path.IsAbs(name) {
		return "", fault.New(fault.Invalid, "", "", "the name is absolute or holds a NUL byte")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fault.New(fault.Invalid, "", "", `the name holds ".."`)
		}
	}
	return path.Clean(name), nil
}

func (u *unpacker) parents(dir string) error {
	if dir == "." {
		return nil
	}
	isDir, found, err := u.root.isDir(dir)
	switch {
	case err != nil:
		return err
	case isDir:
		return nil
	case found:
		return fault.New(fault.Invalid, "", "", "something that is not a folder is in the way")
	}
	if err := u.parents(path.Dir(dir)); err != nil {
		return err
	}
	if err := u.root.mkdir(dir); err != nil {
		return err
	}
	return u.own(dir)
}

func (u *unpacker) dir(name string, h *tar.Header) error {
	if err := u.root.mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	kind, err := u.root.kind(name)
	if err != nil {
		return err
	}
	if kind != unix.S_IFDIR {
		return fault.New(fault.Invalid, "", "", "something that is not a folder is in the way")
	}
	if err := u.own(name); err != nil {
		return err
	}
	return u.root.chmodDir(name, h.FileInfo().Mode())
}

func (u *unpacker) file(name string, h *tar.Header, body io.Reader) error {
	if err := u.clear(name); err != nil {
		return err
	}
	f, err := u.root.create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if err == nil {
		err = f.Chown(int(u.user.UID), int(u.user.GID))
	}
	if err == nil {
		err = f.Chmod(h.FileInfo().Mode() &^ fs.ModeType)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, u.root.remove(name))
	}
	return u.root.touch(name, h.ModTime)
}

// symlink keeps the target as it is: a link may point anywhere, root does not follow it out.
func (u *unpacker) symlink(name string, h *tar.Header) error {
	if err := u.clear(name); err != nil {
		return err
	}
	if err := u.root.symlink(h.Linkname, name); err != nil {
		return err
	}
	return u.own(name)
}

func (u *unpacker) link(name string, h *tar.Header) error {
	target, err := safeName(h.Linkname)
	if err != nil {
		return err
	}
	if err := u.clear(name); err != nil {
		return err
	}
	return u.root.link(target, name)
}

// clear removes what a new entry replaces: writing into it would write through a hard link.
func (u *unpacker) clear(name string) error {
	kind, err := u.root.kind(name)
	switch {
	case err != nil || kind == 0:
		return err
	case kind == unix.S_IFDIR:
		return fault.New(fault.Invalid, "", "", "a folder is in the way")
	}
	return u.root.remove(name)
}

func (u *unpacker) own(name string) error {
	return u.root.own(name, u.user.UID, u.user.GID)
}
